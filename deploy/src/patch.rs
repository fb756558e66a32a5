//! The patch series: which patches there are for a kernel series, and which files each one touches.

use std::fs;
use std::path::{Path, PathBuf};

use crate::error::{At, Result, invalid};

#[derive(Debug)]
pub(crate) struct Patch {
    /// `0001-subject.patch`
    pub(crate) name: String,
    pub(crate) path: PathBuf,
    pub(crate) text: String,
    /// Files that it changes, adds or removes, relative to the tree.
    pub(crate) touches: Vec<PathBuf>,
}

/// Reads `kernel/patches/NNNN-subject.patch` in order. A patch of the same name in
/// `kernel/patches/SERIES/` takes the common one's place for that kernel series.
pub(crate) fn series(root: &Path, kernel_series: &str) -> Result<Vec<Patch>> {
    let common = root.join("kernel/patches");
    let mut patches: Vec<Patch> = Vec::new();
    for dir in [common.clone(), common.join(kernel_series)] {
        for path in patch_files(&dir)? {
            let patch = read(path)?;
            patches.retain(|other| other.name != patch.name);
            patches.push(patch);
        }
    }
    patches.sort_by(|one, other| one.name.cmp(&other.name));
    Ok(patches)
}

fn patch_files(dir: &Path) -> Result<Vec<PathBuf>> {
    if !dir.is_dir() {
        return Ok(Vec::new());
    }
    let mut files = Vec::new();
    for entry in fs::read_dir(dir).at("list", dir)? {
        let path = entry.at("list", dir)?.path();
        if path
            .extension()
            .is_some_and(|extension| extension == "patch")
        {
            files.push(path);
        }
    }
    Ok(files)
}

fn read(path: PathBuf) -> Result<Patch> {
    let name = path
        .file_name()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned();
    let numbered = name.len() > 5 && name.as_bytes()[..4].iter().all(u8::is_ascii_digit);
    if !numbered || name.as_bytes()[4] != b'-' {
        return Err(invalid(format!(
            "{}: not named NNNN-subject.patch",
            path.display()
        )));
    }
    let text = fs::read_to_string(&path).at("read", &path)?;
    let touches = touched(&text)
        .map_err(|line| invalid(format!("{}: bad path in: {line}", path.display())))?;
    if touches.is_empty() {
        return Err(invalid(format!("{}: changes nothing", path.display())));
    }
    Ok(Patch {
        name,
        path,
        text,
        touches,
    })
}

/// The paths in a unified diff's headers, first component stripped; the offending line on a path
/// that leads out of the tree.
fn touched(text: &str) -> std::result::Result<Vec<PathBuf>, String> {
    let mut paths = Vec::new();
    let (mut old_left, mut new_left) = (0_u32, 0_u32);
    for line in text.lines() {
        // A removed line may begin with "-- " and look like a header: count the hunk's lines down.
        if old_left > 0 || new_left > 0 {
            match line.as_bytes().first() {
                Some(b'-') => old_left = old_left.saturating_sub(1),
                Some(b'+') => new_left = new_left.saturating_sub(1),
                Some(b'\\') => {}
                _ => {
                    old_left = old_left.saturating_sub(1);
                    new_left = new_left.saturating_sub(1);
                }
            }
            continue;
        }
        if let Some((old, new)) = hunk(line) {
            (old_left, new_left) = (old, new);
            continue;
        }
        let header = ["--- ", "+++ "]
            .iter()
            .find_map(|mark| line.strip_prefix(mark));
        let moved = ["rename from ", "rename to "]
            .iter()
            .find_map(|mark| line.strip_prefix(mark));
        let path = match (header, moved) {
            (Some(name), _) => {
                let name = name.split('\t').next().unwrap_or(name).trim_end();
                if name == "/dev/null" {
                    continue;
                }
                name.split_once('/').map(|(_, rest)| rest)
            }
            (None, Some(name)) => Some(name),
            (None, None) => continue,
        };
        let inside = |path: &&str| {
            !path.is_empty() && !path.starts_with('/') && !path.split('/').any(|part| part == "..")
        };
        let path = PathBuf::from(path.filter(inside).ok_or_else(|| line.to_owned())?);
        if !paths.contains(&path) {
            paths.push(path);
        }
    }
    Ok(paths)
}

/// The line counts of `@@ -start,count +start,count @@`.
fn hunk(line: &str) -> Option<(u32, u32)> {
    let rest = line.strip_prefix("@@ -")?;
    let (old, rest) = rest.split_once(" +")?;
    let (new, _) = rest.split_once(" @@")?;
    let count = |range: &str| match range.split_once(',') {
        Some((_, count)) => count.parse().ok(),
        None => Some(1),
    };
    Some((count(old)?, count(new)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_are_told_from_content() {
        let text = "why\n---\n a | 2\n\ndiff --git a/x/y.c b/x/y.c\n--- a/x/y.c\n+++ b/x/y.c\n\
                    @@ -1,2 +1,2 @@ f\n--- gone/a.c\n+++ new/b.c\n same\n\
                    --- /dev/null\n+++ b/new.h\t2026\n@@ -0,0 +1 @@\n+x\n-- \n2.39\n";
        assert_eq!(
            touched(text).unwrap(),
            [PathBuf::from("x/y.c"), PathBuf::from("new.h")]
        );
    }

    #[test]
    fn paths_stay_in_the_tree() {
        assert!(touched("--- a/../x\n").is_err());
        assert!(touched("+++ b//etc/passwd\n").is_err());
    }
}
