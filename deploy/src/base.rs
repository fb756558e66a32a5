//! `kernel/base`: which kernels are accepted, and the Debian packages and suites they come from.

use std::fs;
use std::path::Path;

use crate::error::{At, Result, invalid};

#[derive(Debug, PartialEq)]
pub(crate) struct Base {
    /// The best first.
    pub(crate) accepted: Vec<Accepted>,
    pub(crate) suites: Vec<String>,
}

#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Accepted {
    /// `7.3`: every 7.3.x is taken.
    pub(crate) series: String,
    pub(crate) package: String,
}

impl Base {
    pub(crate) fn read(root: &Path) -> Result<Self> {
        let path = root.join("kernel/base");
        parse(&fs::read_to_string(&path).at("read", &path)?)
    }

    /// The accepted series, restricted to `wanted` if given.
    pub(crate) fn choose(&self, wanted: Option<&str>) -> Result<Vec<Accepted>> {
        let fits = |entry: &&Accepted| wanted.is_none_or(|series| series == entry.series);
        let found: Vec<Accepted> = self.accepted.iter().filter(fits).cloned().collect();
        if found.is_empty() {
            return Err(invalid(format!(
                "--series {}: not accepted; allowed: {}",
                wanted.unwrap_or_default(),
                self.names()
            )));
        }
        Ok(found)
    }

    pub(crate) fn names(&self) -> String {
        let names: Vec<&str> = self.accepted.iter().map(|a| a.series.as_str()).collect();
        names.join(", ")
    }
}

fn parse(text: &str) -> Result<Base> {
    let mut base = Base {
        accepted: Vec::new(),
        suites: Vec::new(),
    };
    for line in text.lines() {
        let line = line.split('#').next().unwrap_or_default();
        match line.split_whitespace().collect::<Vec<_>>()[..] {
            [] => {}
            ["suites", ref suites @ ..] => base.suites.extend(suites.iter().map(|s| s.to_string())),
            ["kernel", series, package] => base.accepted.push(Accepted {
                series: series.to_owned(),
                package: package.to_owned(),
            }),
            _ => {
                return Err(invalid(format!(
                    "kernel/base: cannot make sense of: {line}"
                )));
            }
        }
    }
    Ok(base)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_series_and_suites() {
        let base = parse("# c\nkernel 7.3 linux-source-7.3 # best\nsuites a b\n").unwrap();
        assert_eq!(base.accepted[0].package, "linux-source-7.3");
        assert_eq!(base.suites, ["a", "b"]);
        assert_eq!(base.choose(Some("7.3")).unwrap().len(), 1);
        assert!(base.choose(Some("7.2")).is_err());
        assert!(parse("kernel 7.3").is_err());
    }
}
