//! Kernel source by package name from the machine's own Debian mirror.
//!
//! apt runs on a configuration, lists and cache of its own below the build directory: nothing of the
//! machine's changes, no root is needed, suites that the machine does not list can be asked, and apt
//! verifies signatures and hashes as always.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::base::Accepted;
use crate::error::{At, Error, Result, broken, invalid};
use crate::layout::{self, Layout};
use crate::process;
use crate::progress::Progress;
use crate::stamp;

/// Debian's archive keys on the machine; the first that is there is used.
const KEYRINGS: &[&str] = &[
    "/usr/share/keyrings/debian-archive-keyring.gpg",
    "/usr/share/keyrings/debian-archive-keyring.pgp",
];

#[derive(Debug)]
pub(crate) struct Package {
    pub(crate) name: String,
    pub(crate) version: String,
    pub(crate) bytes: u64,
    sha256: String,
}

#[derive(Debug)]
pub(crate) struct Apt<'a> {
    layout: &'a Layout,
    progress: &'a Progress,
    lock: &'a File,
    config: PathBuf,
    uri: String,
    /// Why the lists may be incomplete, told if nothing is found in them.
    doubt: Option<String>,
}

impl<'a> Apt<'a> {
    /// Sets up the private configuration and reads the lists of `suites`.
    pub(crate) fn open(
        layout: &'a Layout,
        progress: &'a Progress,
        lock: &'a File,
        suites: &[String],
    ) -> Result<Self> {
        let uri = mirror()?;
        let home = layout.kernel().join("apt");
        for dir in ["state", "lists/partial", "cache/archives/partial"] {
            let dir = home.join(dir);
            fs::create_dir_all(&dir).at("create", &dir)?;
        }
        let keyring = KEYRINGS.iter().find(|path| Path::new(path).is_file());
        let options = keyring.map_or(String::new(), |path| format!(" signed-by={path}"));
        let sources: String = suites
            .iter()
            .map(|suite| format!("deb [arch=amd64{options}] {uri} {suite} main\n"))
            .collect();
        stamp::write_atomic(&home.join("sources.list"), sources)?;
        stamp::write_atomic(&home.join("status"), "")?;
        let config = home.join("apt.conf");
        stamp::write_atomic(&config, configuration(&home)?)?;
        let mut apt = Apt {
            layout,
            progress,
            lock,
            config,
            uri,
            doubt: None,
        };
        progress.stage(format!(
            "source: asking {} for {}",
            apt.uri,
            suites.join(", ")
        ));
        let update = apt.command("apt-get", &["update", "-q"]);
        // One suite that is gone or stale does not matter while another has the package.
        if let Err(error) =
            process::logged("apt-get update", update, lock, &layout.log("apt"), |_| ())
        {
            apt.doubt = Some(error.to_string());
        }
        Ok(apt)
    }

    /// All versions of the first series that the mirror has, the newest first.
    pub(crate) fn versions(&self, accepted: &[Accepted]) -> Result<Vec<Package>> {
        for entry in accepted {
            let shown = process::output(&mut self.command("apt-cache", &["show", &entry.package]))?;
            let mut found = stanzas(&String::from_utf8_lossy(&shown.stdout), entry);
            if !found.is_empty() {
                sort_newest_first(&mut found)?;
                return Ok(found);
            }
        }
        let names: Vec<&str> = accepted.iter().map(|a| a.package.as_str()).collect();
        Err(Error::NotListed(format!(
            "{} has no {}; give a kernel with --kernel-source{}",
            self.uri,
            names.join(" or "),
            self.doubt
                .as_ref()
                .map_or(String::new(), |why| format!("\n{why}")),
        )))
    }

    /// The package that another one, which has nothing itself, depends on first.
    pub(crate) fn depends(&self, package: &str) -> Result<String> {
        let asked = ["show", "--no-all-versions", package];
        let shown = process::output(&mut self.command("apt-cache", &asked))?;
        first_dependency(&String::from_utf8_lossy(&shown.stdout)).ok_or_else(|| {
            let doubt = self.doubt.as_ref();
            let why = doubt.map_or(String::new(), |why| format!("\n{why}"));
            Error::NotListed(format!("{} has no {package}{why}", self.uri))
        })
    }

    /// The .deb of `package`, from the cache if it is there and has the hash that apt lists.
    pub(crate) fn fetch(&self, package: &Package) -> Result<PathBuf> {
        let cache = self.layout.cache();
        fs::create_dir_all(&cache).at("create", &cache)?;
        let deb = cache.join(format!("{}_{}_all.deb", package.name, package.version));
        if deb.is_file() {
            if stamp::sha256_file(&deb)? == package.sha256 {
                self.progress.stage(format!(
                    "source: {} from {}",
                    package.version,
                    cache.display()
                ));
                return Ok(deb);
            }
            layout::remove(&deb)?;
        }
        // The cache may be shared with builds that this one's lock does not keep out.
        let partial = cache.join(format!("partial.{}", std::process::id()));
        layout::remove(&partial)?;
        fs::create_dir(&partial).at("create", &partial)?;
        let fetched = self.download(package, &partial, &deb);
        layout::remove(&partial)?;
        fetched.map(|()| deb)
    }

    fn download(&self, package: &Package, partial: &Path, deb: &Path) -> Result<()> {
        let whole_mb = package.bytes / 1_000_000;
        self.progress.stage(format!(
            "source: fetching {} {} ({whole_mb} MB)",
            package.name, package.version
        ));
        let wanted = format!("{}={}", package.name, package.version);
        let mut command = self.command("apt-get", &["download", "-q", &wanted]);
        command.current_dir(partial);
        let mut counter = self.progress.counter("source");
        let log = self.layout.log("download");
        process::logged("download", command, self.lock, &log, |_| {
            let got: u64 = entries(partial)
                .iter()
                .filter_map(|p| p.metadata().ok())
                .map(|m| m.len())
                .sum();
            counter.show(&format!("{} of {whole_mb} MB", got / 1_000_000), "");
        })?;
        let [file] = &entries(partial)[..] else {
            return Err(broken(format!(
                "apt-get download {wanted} left no package behind"
            )));
        };
        let sha256 = stamp::sha256_file(file)?;
        if sha256 != package.sha256 {
            return Err(broken(format!(
                "{wanted}: SHA-256 is {sha256}, the mirror's list says {}",
                package.sha256
            )));
        }
        fs::rename(file, deb).at("rename to", deb)
    }

    fn command(&self, program: &str, arguments: &[&str]) -> Command {
        let mut command = Command::new(program);
        command
            .args(arguments)
            .env("APT_CONFIG", &self.config)
            .env("LC_ALL", "C");
        command
    }
}

fn entries(dir: &Path) -> Vec<PathBuf> {
    let listed = fs::read_dir(dir).into_iter().flatten();
    listed
        .filter_map(|entry| Some(entry.ok()?.path()))
        .collect()
}

/// The machine's transport settings (proxies, certificates, …) with everything that names a path
/// replaced, and without the hooks that the machine runs after its own updates.
fn configuration(home: &Path) -> Result<String> {
    let mut command = Command::new("apt-config");
    command.arg("dump").env("LC_ALL", "C");
    let dump = process::output(&mut command)?;
    let dump = String::from_utf8_lossy(&dump.stdout).into_owned();
    let ours =
        |line: &&str| line.starts_with("Acquire::") && !line.starts_with("Acquire::IndexTargets");
    let mut text: String = dump
        .lines()
        .filter(ours)
        .map(|line| format!("{line}\n"))
        .collect();
    let home = home.display();
    for (option, value) in [
        ("Dir::State", format!("{home}/state")),
        ("Dir::State::lists", format!("{home}/lists")),
        ("Dir::State::status", format!("{home}/status")),
        ("Dir::Cache", format!("{home}/cache")),
        ("Dir::Etc::sourcelist", format!("{home}/sources.list")),
        ("Dir::Etc::sourceparts", "/dev/null".into()),
        ("Dir::Etc::parts", "/dev/null".into()),
        ("Dir::Etc::main", "/dev/null".into()),
        ("Dir::Etc::preferences", "/dev/null".into()),
        ("Dir::Etc::preferencesparts", "/dev/null".into()),
        ("Acquire::Languages", "none".into()),
        ("Acquire::PDiffs", "false".into()),
        // The unprivileged user that apt downloads as cannot enter every build directory.
        ("APT::Sandbox::User", String::new()),
    ] {
        text.push_str(&format!("{option} \"{value}\";\n"));
    }
    Ok(text)
}

/// The mirror that the machine takes Debian itself from.
fn mirror() -> Result<String> {
    let ask = |arguments: &[&str]| {
        let mut command = Command::new("apt-get");
        command.args(arguments).env("LC_ALL", "C");
        let out = process::output(&mut command)?;
        Ok(String::from_utf8_lossy(&out.stdout).into_owned())
    };
    let format = "$(CREATED_BY)|$(REPO_URI)|$(RELEASE)|$(COMPONENT)|$(ORIGIN)";
    if let Some(uri) = mirror_by_origin(&ask(&["indextargets", "--format", format])?) {
        return Ok(uri);
    }
    // A machine that has not read its lists yet knows no origins, only what it would read.
    mirror_by_suite(&ask(&["update", "--print-uris"])?).ok_or_else(|| {
        invalid("apt on this machine knows no Debian mirror; give a kernel with --kernel-source")
    })
}

fn mirror_by_origin(targets: &str) -> Option<String> {
    targets
        .lines()
        .find_map(|line| match line.split('|').collect::<Vec<_>>()[..] {
            ["Packages", uri, release, "main", "Debian"] if is_debian_suite(release) => {
                Some(uri.trim_end_matches('/').to_owned())
            }
            _ => None,
        })
}

/// From lines such as `'http://mirror/debian/dists/trixie/InRelease' name 0`.
fn mirror_by_suite(uris: &str) -> Option<String> {
    let archives = uris.lines().filter_map(|line| {
        let release_file = line.strip_prefix('\'')?.split('\'').next()?;
        let (archive, rest) = release_file.split_once("/dists/")?;
        is_debian_suite(rest.strip_suffix("/InRelease")?).then(|| archive.to_owned())
    });
    let archives: Vec<String> = archives.collect();
    // By convention Debian's archive is called that; archives of others use its suites' names too.
    let named = archives.iter().find(|archive| archive.ends_with("/debian"));
    named.or(archives.first()).cloned()
}

/// True for the suites of the main archive, false for those of security fixes and of other origins.
fn is_debian_suite(name: &str) -> bool {
    const SUITES: &[&str] = &[
        "bookworm",
        "trixie",
        "forky",
        "sid",
        "oldstable",
        "stable",
        "testing",
        "unstable",
    ];
    SUITES.contains(&name.strip_suffix("-updates").unwrap_or(name))
}

fn stanzas(shown: &str, entry: &Accepted) -> Vec<Package> {
    let field = |stanza: &str, name: &str| {
        let value = stanza
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
        value.map(str::to_owned)
    };
    let parse = |stanza: &str| {
        Some(Package {
            name: entry.package.clone(),
            version: field(stanza, "Version")?,
            bytes: field(stanza, "Size")?.parse().ok()?,
            sha256: field(stanza, "SHA256")?,
        })
    };
    shown.split("\n\n").filter_map(parse).collect()
}

fn first_dependency(shown: &str) -> Option<String> {
    let mut lines = shown.lines();
    let depends = lines.find_map(|line| line.strip_prefix("Depends: "))?;
    let name = depends.split([' ', ',', '(', '|']).next()?;
    (!name.is_empty()).then(|| name.to_owned())
}

/// Debian's order of versions is dpkg's to know ("~" sorts before the end of a version).
fn sort_newest_first(packages: &mut [Package]) -> Result<()> {
    for end in 1..packages.len() {
        let mut at = end;
        while at > 0 && newer(&packages[at].version, &packages[at - 1].version)? {
            packages.swap(at, at - 1);
            at -= 1;
        }
    }
    Ok(())
}

fn newer(one: &str, other: &str) -> Result<bool> {
    let mut command = Command::new("dpkg");
    command.args(["--compare-versions", one, "gt", other]);
    Ok(process::output(&mut command)?.status.success())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mirror_is_debians_own() {
        let targets = "Packages|https://example.org/cloud/|cloud-bookworm|main|Cloud\n\
                       DEP-11|http://other/debian/|bookworm|main|Debian\n\
                       Packages|http://example.net/debian-security/|bookworm-security|main|Debian\n\
                       Packages|http://example.net/debian/|bookworm|main|Debian\n";
        assert_eq!(
            mirror_by_origin(targets).unwrap(),
            "http://example.net/debian"
        );
        assert_eq!(
            mirror_by_origin("Packages|http://e/x|stable|main|Other\n"),
            None
        );
    }

    #[test]
    fn the_mirror_is_found_before_lists_are_read() {
        let uris = "'http://example.com/tool/dists/trixie/InRelease' example.com_tool 0 \n\
                    'http://example.net/debian-security/dists/trixie-security/InRelease' s 0 \n\
                    'http://example.net/debian/dists/trixie/InRelease' example.net_debian 0 \n";
        assert_eq!(mirror_by_suite(uris).unwrap(), "http://example.net/debian");
        assert_eq!(
            mirror_by_suite("'http://e/dists/focal/InRelease' e 0 \n"),
            None
        );
    }

    #[test]
    fn a_package_of_nothing_names_the_one_that_has_it() {
        let shown = "Package: linux-image-amd64\nVersion: 6.1\n\
                     Depends: linux-image-6.1.0-56-amd64 (= 6.1.192-2), other\n";
        let name = first_dependency(shown).unwrap();
        assert_eq!(name, "linux-image-6.1.0-56-amd64");
        assert_eq!(first_dependency("N: Unable to locate package\n"), None);
    }

    #[test]
    fn stanzas_without_a_hash_are_left_out() {
        let entry = Accepted {
            series: "7.3".into(),
            package: "linux-source-7.3".into(),
        };
        let shown =
            "Package: p\nVersion: 7.3.4-1\nSize: 10\nSHA256: ab\n\nPackage: p\nVersion: 1\n";
        let found = stanzas(shown, &entry);
        assert_eq!(found.len(), 1);
        assert_eq!((found[0].version.as_str(), found[0].bytes), ("7.3.4-1", 10));
    }
}
