//! The kernel's configuration: everything off, then what the fragments ask for, then a check that
//! every symbol asked for came through (Kconfig drops what lacks a dependency without a word).

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use crate::error::{At, Result, invalid};
use crate::kernel::Variant;
use crate::layout;

/// Symbols of our own Kconfig, which a plain upstream tree does not know.
const OURS: &str = "span.config";

/// What only a kernel that counts executed lines has.
const COUNTING: &str = "gcov.config";

#[derive(Debug)]
pub(crate) struct Fragments {
    /// Symbol, as in `CONFIG_SMP`, to what is asked for.
    requests: BTreeMap<String, Request>,
    /// All fragments in one, for KCONFIG_ALLCONFIG.
    pub(crate) text: String,
}

#[derive(Debug)]
struct Request {
    value: String,
    fragment: PathBuf,
}

/// Reads `kernel/config/*.config`, as far as `variant` wants them.
pub(crate) fn read(root: &Path, variant: &Variant) -> Result<Fragments> {
    let left_out: &[&str] = match variant {
        Variant::Span => &[COUNTING],
        Variant::Counting(_) => &[],
        Variant::Upstream => &[COUNTING, OURS],
    };
    let dir = root.join("kernel/config");
    let mut fragments = Fragments {
        requests: BTreeMap::new(),
        text: String::new(),
    };
    for name in layout::files_below(&dir)? {
        let is_fragment = name
            .extension()
            .is_some_and(|extension| extension == "config");
        if !is_fragment || left_out.iter().any(|out| name == Path::new(out)) {
            continue;
        }
        let path = dir.join(&name);
        let text = fs::read_to_string(&path).at("read", &path)?;
        fragments.add(&name, &text)?;
    }
    Ok(fragments)
}

impl Fragments {
    fn add(&mut self, name: &Path, text: &str) -> Result<()> {
        for line in text.lines() {
            let Some((symbol, value)) = setting(line) else {
                if line.trim().is_empty() || line.starts_with('#') {
                    continue;
                }
                return Err(invalid(format!(
                    "kernel/config/{}: not CONFIG_NAME=value: {line}",
                    name.display()
                )));
            };
            let request = Request {
                value: value.to_owned(),
                fragment: name.to_path_buf(),
            };
            if let Some(other) = self.requests.insert(symbol.to_owned(), request) {
                return Err(invalid(format!(
                    "kernel/config/{}: {symbol} is in {} already",
                    name.display(),
                    other.fragment.display()
                )));
            }
        }
        self.text.push_str(text);
        self.text.push('\n');
        Ok(())
    }

    /// Checks that `dot_config` has every request as it was made.
    pub(crate) fn assert_survived(&self, dot_config: &Path) -> Result<()> {
        let text = fs::read_to_string(dot_config).at("read", dot_config)?;
        let lost = self.lost(&text);
        if lost.is_empty() {
            return Ok(());
        }
        Err(invalid(format!(
            "the kernel's configuration does not follow its fragments:\n    {}",
            lost.join("\n    ")
        )))
    }

    fn lost(&self, dot_config: &str) -> Vec<String> {
        let got: BTreeMap<&str, &str> = dot_config.lines().filter_map(setting).collect();
        let mut lost = Vec::new();
        for (symbol, request) in &self.requests {
            let value = got.get(symbol.as_str()).copied().unwrap_or("n");
            if value != request.value {
                lost.push(format!(
                    "kernel/config/{}: {symbol}={} is asked for, {value} came out",
                    request.fragment.display(),
                    request.value
                ));
            }
        }
        lost
    }
}

/// `CONFIG_X=value`, or `# CONFIG_X is not set` as the value `n`.
fn setting(line: &str) -> Option<(&str, &str)> {
    let line = line.trim_end();
    if let Some(rest) = line.strip_prefix("# CONFIG_") {
        let name = rest.strip_suffix(" is not set")?;
        return Some((&line[2..2 + "CONFIG_".len() + name.len()], "n"));
    }
    line.split_once('=')
        .filter(|(symbol, _)| symbol.starts_with("CONFIG_"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fragments(text: &str) -> Result<Fragments> {
        let mut fragments = Fragments {
            requests: BTreeMap::new(),
            text: String::new(),
        };
        fragments.add(Path::new("a.config"), text)?;
        Ok(fragments)
    }

    #[test]
    fn a_dropped_symbol_is_named() {
        let asked = fragments("# why\nCONFIG_A=y\nCONFIG_B=n\nCONFIG_C=\"x\"\n").unwrap();
        let lost = asked.lost("# CONFIG_A is not set\nCONFIG_C=\"x\"\n");
        assert_eq!(
            lost,
            ["kernel/config/a.config: CONFIG_A=y is asked for, n came out"]
        );
        assert!(
            asked
                .lost("CONFIG_A=y\n# CONFIG_B is not set\nCONFIG_C=\"x\"\n")
                .is_empty()
        );
        assert_eq!(
            asked.lost("CONFIG_A=y\nCONFIG_B=y\nCONFIG_C=\"x\"\n").len(),
            1
        );
    }

    #[test]
    fn a_symbol_is_asked_for_once() {
        assert!(fragments("CONFIG_A=y\n# CONFIG_A is not set\n").is_err());
        assert!(fragments("CONFG_A=y\n").is_err());
    }
}
