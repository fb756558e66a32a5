//! From the paths of a command line to what is copied where.

use crate::failure::Failure;
use span_api::copy::Into;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

/// Exactly one side of a copy is a guest.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Copy {
    In {
        from: From,
        /// `None`: the only one that runs.
        guest: Option<String>,
        path: Vec<u8>,
        into: Into,
    },
    Out {
        guest: Option<String>,
        paths: Vec<Vec<u8>>,
        /// `None`: stdout.
        to: Option<PathBuf>,
        into: Into,
    },
}

#[derive(Debug, PartialEq, Eq)]
pub(super) enum From {
    Paths(Vec<PathBuf>),
    Stdin,
}

/// One path of the command line.
enum Side {
    Guest(Option<String>, Vec<u8>),
    Host(PathBuf),
    Stream,
}

impl Side {
    /// A guest's path has a colon before its first slash.
    fn parse(word: &OsStr) -> Result<Self, Failure> {
        let bytes = word.as_bytes();
        let refused = |why: &str| Err(Failure::usage(format!("{}: {why}", word.display())));
        let first = bytes.iter().position(|byte| b":/".contains(byte));
        match first {
            _ if bytes.is_empty() => Err(Failure::usage("an empty path was given")),
            _ if bytes == b"-" => Ok(Self::Stream),
            Some(colon) if bytes[colon] == b':' => {
                let (name, path) = (&bytes[..colon], &bytes[colon + 1..]);
                let Ok(name) = std::str::from_utf8(name) else {
                    return refused("no guest has such a name; a file here is ./NAME");
                };
                if path.is_empty() {
                    return refused("the path in the guest is missing: NAME:PATH");
                }
                let name = (!name.is_empty()).then(|| name.to_string());
                Ok(Self::Guest(name, path.to_vec()))
            }
            _ => Ok(Self::Host(word.into())),
        }
    }
}

impl Copy {
    pub(super) fn parse(words: &[OsString]) -> Result<Self, Failure> {
        let Some((last, sources)) = words.split_last().filter(|(_, rest)| !rest.is_empty()) else {
            return Err(Failure::usage("cp needs at least SRC and DST"));
        };
        let parse = |word: &OsString| Side::parse(word);
        let sources = sources.iter().map(parse).collect::<Result<Vec<_>, _>>()?;
        let several = sources.len() > 1;
        let into = match several || last.as_bytes().ends_with(b"/") {
            true => Into::Directory,
            false => Into::Any,
        };
        match Side::parse(last)? {
            Side::Guest(guest, path) => {
                let mut paths = Vec::new();
                for source in sources {
                    match source {
                        Side::Host(path) => paths.push(path),
                        Side::Stream if several => return one_stream(),
                        Side::Stream => {
                            return Ok(Self::In {
                                from: From::Stdin,
                                guest,
                                path,
                                into: Into::File,
                            });
                        }
                        Side::Guest(..) => {
                            return Err(Failure::usage(
                                "one side of a copy is here: copy from a guest first, then to the other",
                            ));
                        }
                    }
                }
                Ok(Self::In {
                    from: From::Paths(paths),
                    guest,
                    path,
                    into,
                })
            }
            to => Self::out(sources, to, into),
        }
    }

    fn out(sources: Vec<Side>, to: Side, into: Into) -> Result<Self, Failure> {
        let mut from: Option<Option<String>> = None;
        let mut paths = Vec::new();
        for source in sources {
            let Side::Guest(guest, path) = source else {
                return Err(Failure::usage(
                    "one side of a copy is in a guest: NAME:PATH",
                ));
            };
            if from.as_ref().is_some_and(|known| *known != guest) {
                return Err(Failure::usage("one copy is from one guest"));
            }
            from = Some(guest);
            paths.push(path);
        }
        let to = match to {
            Side::Host(path) => Some(path),
            _ if paths.len() > 1 => return one_stream(),
            _ => None,
        };
        Ok(Self::Out {
            guest: from.flatten(),
            paths,
            to,
            into,
        })
    }
}

fn one_stream() -> Result<Copy, Failure> {
    Err(Failure::usage("- is one file"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(words: &str) -> Result<Copy, Failure> {
        let words: Vec<OsString> = words.split(' ').map(OsString::from).collect();
        Copy::parse(&words)
    }

    #[test]
    fn a_colon_before_the_first_slash_names_a_guest() {
        let into = |path: &str, guest: Option<&str>, from, into| Copy::In {
            from,
            guest: guest.map(String::from),
            path: path.into(),
            into,
        };
        let paths = |names: &[&str]| From::Paths(names.iter().map(PathBuf::from).collect());
        for (words, expected) in [
            ("a g:/b", into("/b", Some("g"), paths(&["a"]), Into::Any)),
            ("a :b", into("b", None, paths(&["a"]), Into::Any)),
            (
                "./x:y g:/b/",
                into("/b/", Some("g"), paths(&["./x:y"]), Into::Directory),
            ),
            (
                "a b g:/c",
                into("/c", Some("g"), paths(&["a", "b"]), Into::Directory),
            ),
            ("- g:/b", into("/b", Some("g"), From::Stdin, Into::File)),
        ] {
            assert_eq!(parse(words).unwrap(), expected, "{words}");
        }
        let out = |paths: &[&str], to: Option<&str>, into| Copy::Out {
            guest: Some("g".into()),
            paths: paths.iter().map(|path| path.as_bytes().to_vec()).collect(),
            to: to.map(PathBuf::from),
            into,
        };
        for (words, expected) in [
            ("g:/a b", out(&["/a"], Some("b"), Into::Any)),
            ("g:a:b -", out(&["a:b"], None, Into::Any)),
            (
                "g:/a g:/b c",
                out(&["/a", "/b"], Some("c"), Into::Directory),
            ),
        ] {
            assert_eq!(parse(words).unwrap(), expected, "{words}");
        }
    }

    #[test]
    fn bad_combinations_are_refused() {
        for (words, part) in [
            ("a", "SRC and DST"),
            ("a b", "one side of a copy is in a guest"),
            ("- -", "one side of a copy is in a guest"),
            ("g:/a h:/b", "one side of a copy is here"),
            ("g:/a h:/b c", "one guest"),
            ("g:/a g:/b -", "- is one file"),
            ("a - g:/b", "- is one file"),
            ("a g:", "path in the guest is missing"),
            ("g:/a a b", "one side of a copy is in a guest"),
            (" g:/a", "empty path"),
        ] {
            let failure = parse(words).unwrap_err();
            assert_eq!(failure.code, 2, "{words}");
            assert!(failure.line.contains(part), "{words}: {}", failure.line);
        }
    }
}
