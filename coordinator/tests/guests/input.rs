//! Bad input: one line, the right exit code, and nothing started or left.

use crate::support::{Place, put};
use span_api::codec;
use span_api::link::Hello;
use std::os::unix::fs::PermissionsExt;

/// Runs something that must be refused, and returns its one line.
fn refused(place: &Place, arguments: &[&str]) -> String {
    let ran = place.run(arguments);
    assert_eq!(ran.code, 2, "{arguments:?}: {ran:?}");
    assert_eq!(ran.stdout, "", "{arguments:?}");
    assert_eq!(
        ran.stderr.lines().count(),
        1,
        "{arguments:?}: {}",
        ran.stderr
    );
    assert!(place.left().is_empty(), "{arguments:?} started something");
    ran.line().to_string()
}

#[test]
fn options_are_checked_before_anything_is_started() {
    let place = Place::new();
    let token = place.secret("short", "fifteen bytes..\n");
    let (short, open) = (token.to_str().unwrap(), place.path("open"));
    std::fs::write(&open, "a token for everybody").unwrap();
    std::fs::set_permissions(&open, PermissionsExt::from_mode(0o644)).unwrap();
    let open = open.to_str().unwrap();
    let long = "x=".to_string() + &"y".repeat(4096);
    for (options, parts) in [
        (
            &["--nodes", "a,b,a"][..],
            &["--nodes a,b,a", "a is named twice"][..],
        ),
        (&["--nodes", "a,"], &["--nodes \"\"", "1 to 32"]),
        (&["--nodes", "a=host"], &["--nodes a=host", "HOST:PORT"]),
        (
            &["--nodes", "a=host:1"],
            &["--nodes a=host:1", "--token-file"],
        ),
        (&["--nodes", "a", "--cpus", "0"], &["--cpus 0", "1 to 64"]),
        (
            &["--nodes", "a,b", "--cpus", "33"],
            &["--cpus 33", "66", "at most 64"],
        ),
        (
            &["--nodes", "a", "--cpus", "b=1"],
            &["--cpus b=1", "no node b", "has a"],
        ),
        (
            &["--nodes", "a", "--mem", "32M"],
            &["--mem 32M", "at least 64M"],
        ),
        (
            &["--nodes", "a,b", "--mem", "b=8M"],
            &["--mem b=8M", "at least 16M"],
        ),
        (
            &["--nodes", "a", "--mem", "900000G"],
            &["--mem 900000G", "cannot map"],
        ),
        (
            &["--nodes", "a", "--mem", "lots"],
            &["--mem lots", "K, M or G"],
        ),
        (
            &["--nodes", "a", "--root", "/none/such"],
            &["--root /none/such", "No such file"],
        ),
        (
            &["--nodes", "a", "--root", "/dev/zero"],
            &["--root /dev/zero", "neither"],
        ),
        (
            &["--nodes", "a", "--ubd", "/none"],
            &["--ubd /none", "No such file"],
        ),
        (
            &["--nodes", "a", "--kernel", "/none"],
            &["--kernel /none", "No such file"],
        ),
        (
            &["--nodes", "a", "--kernel", "/bin/true"],
            &["--kernel /bin/true", "not a kernel of Span"],
        ),
        (
            &["--nodes", "a", "--kernel", "initramfs.cpio"],
            &["--kernel", "not executable"],
        ),
        (
            &["--nodes", "a", "--append", "mem=1G"],
            &["--append mem=1G", "--mem"],
        ),
        (
            &["--nodes", "a", "--append", &long],
            &["--append", "at most"],
        ),
        (
            &["--nodes", "a", "--name", "a/b"],
            &["--name \"a/b\"", "a-z"],
        ),
        (
            &["--nodes", "a", "--token-file", "/none"],
            &["--token-file /none", "No such file"],
        ),
        (
            &["--nodes", "a", "--token-file", short],
            &["--token-file", "15 bytes"],
        ),
        (
            &["--nodes", "a", "--token-file", open],
            &["--token-file", "644", "chmod 600"],
        ),
        (
            &["--nodes", "a", "--paging", "magic"],
            &["--paging", "magic", "auto, mprotect, uffd"],
        ),
        (
            &["--nodes", "a", "--detach", "--", "true"],
            &["--detach", "CMD"],
        ),
        (&["--nodes", "a", "--frobnicate"], &["--frobnicate"]),
        (&["--nodes", "a", "true"], &["true"]),
        (&["--nodes"], &["--nodes"]),
        (&[], &["--nodes"]),
    ] {
        let arguments: Vec<&str> = ["up"].iter().chain(options).copied().collect();
        let line = refused(&place, &arguments);
        for part in parts {
            assert!(line.contains(part), "{arguments:?}: {line}");
        }
    }
    for arguments in [
        &["frobnicate"][..],
        &["exec"],
        &["completions", "dos"],
        &["down", "x/../y"],
        &["stats", "--watch", "--interval", "0"],
        &["stats", "--watch", "--interval", "soon"],
        &["stats", "--watch", "--interval", "inf"],
        &["stats", "--interval", "1"],
        &["stats", "no-such-guest"],
        &["profile"],
        &["profile", "no-such-guest"],
        &["profile", "--seconds", "0"],
        &["profile", "--seconds", "-1"],
        &["profile", "--json", "/no/such/file"],
        &["profile", "--trace", "/"],
        &["profile", "--cpus", "2"],
        &["profile", "--nodes", "a,b"],
        &["profile", "--nodes", "a,a", "--", "true"],
        &["profile", "--nodes", "a", "--detach", "--", "true"],
        &["profile", "--nodes", "a", "--seconds", "1", "--", "true"],
        &["profile", "guest", "--nodes", "a", "--", "true"],
    ] {
        refused(&place, arguments);
    }
}

#[test]
fn missing_parts_are_named() {
    for name in ["linux", "libnode.so", "initramfs.cpio", "node"] {
        let place = Place::new();
        std::fs::remove_file(place.path(name)).unwrap();
        let line = refused(&place, &["up", "--nodes", "a", "--", "true"]);
        assert!(line.contains(&format!("/{name}: No such file")), "{line}");
    }
}

#[test]
fn a_node_of_another_version_is_refused() {
    let place = Place::new();
    let mut hello = Hello::new(None);
    hello.build = "0.0.1-other".into();
    std::fs::write(place.path("hello"), codec::encode(&hello).unwrap()).unwrap();
    // Says hello on its link, and goes when the coordinator does.
    let script = "#!/bin/bash\nexec 9>&${2#--link-fd=}\ncat hello >&9\ncat <&9 >/dev/null\n";
    stand_in(&place, script);
    let ran = place.words("up --nodes a,b -- true");
    assert_eq!(ran.code, 125, "{ran:?}");
    assert!(
        ran.line().contains("is another version: build 0.0.1-other"),
        "{ran:?}"
    );
}

#[test]
fn a_guest_process_of_another_version_is_refused() {
    let place = Place::new();
    let ran = place.words("up --nodes a,b --append fake.build=0.0.1-other -- true");
    assert_eq!(ran.code, 125, "{ran:?}");
    let said = "its libnode.so is another version: build 0.0.1-other, here ";
    assert!(ran.line().contains(said), "{ran:?}");
    // One from before there were greetings waits for the agent's first message.
    let ran = place.words("up --nodes a,b --append fake.hang=hello -- true");
    assert_eq!(ran.code, 125, "{ran:?}");
    let said = "its libnode.so is another version: no greeting within";
    assert!(ran.line().contains(said), "{ran:?}");
}

#[test]
fn hosts_that_differ_are_refused() {
    let place = Place::new();
    let cannot = "cannot be in one guest with node a: its CPU";
    for (nodes, host, line) in [
        (
            "a,b",
            "1:cpu",
            format!("node b {cannot} lacks tsc, cx8, cmov, "),
        ),
        (
            "a,b,c",
            "2:xsave",
            format!("node c {cannot} state takes 896 bytes, there 832"),
        ),
        // The first is what the others are compared with.
        (
            "a,b",
            "0:xsave",
            format!("node b {cannot} state takes 832 bytes, there 896"),
        ),
        (
            "a,b",
            "1:much",
            "node b: its runtime did not describe its host".into(),
        ),
    ] {
        let words = format!("up --nodes {nodes} --append fake.host={host} -- true");
        let ran = place.words(&words);
        assert_eq!(ran.code, 125, "{ran:?}");
        let line = format!("coordinator: {line}");
        assert!(ran.line().starts_with(&line), "{ran:?}");
    }
}

#[test]
fn a_node_that_is_none_is_refused() {
    for script in [
        "#!/bin/sh\nexit 1\n",
        "#!/bin/bash\nexec 9>&${2#--link-fd=}\necho 'I am no node' >&9\n",
    ] {
        let place = Place::new();
        stand_in(&place, script);
        let ran = place.words("up --nodes a,b -- true");
        assert_eq!(ran.code, 125, "{ran:?}");
        assert!(ran.line().starts_with("coordinator: node "), "{ran:?}");
    }
}

/// Puts a script in the place of the agent.
fn stand_in(place: &Place, script: &str) {
    let path = place.path("node");
    std::fs::remove_file(&path).unwrap();
    std::fs::write(&path, script).unwrap();
    std::fs::set_permissions(&path, PermissionsExt::from_mode(0o755)).unwrap();
}

#[test]
fn a_kernel_that_does_not_run_is_told() {
    let place = Place::new();
    // Has the marks of a kernel of ours, and is not one.
    let mut program = std::fs::read("/bin/true").unwrap();
    program.extend(b"libnode.so\0");
    std::fs::write(place.path("wrong"), program).unwrap();
    std::fs::set_permissions(place.path("wrong"), PermissionsExt::from_mode(0o755)).unwrap();
    let ran = place.words("up --nodes a,b --kernel wrong -- true");
    assert_eq!(ran.code, 70, "{ran:?}");
    assert!(
        ran.line().contains("its guest process exited with 0"),
        "{ran:?}"
    );
}

#[test]
fn completions_are_printed_and_help_is_no_error() {
    let place = Place::new();
    for shell in ["bash", "zsh", "fish"] {
        let ran = place.words(&format!("completions {shell}"));
        assert!(
            ran.code == 0 && ran.stdout.contains("token-file"),
            "{ran:?}"
        );
    }
    for words in ["--help", "up --help", "--version"] {
        let ran = place.words(words);
        assert!(
            ran.code == 0 && ran.stderr.is_empty() && !ran.stdout.is_empty(),
            "{ran:?}"
        );
    }
}

#[test]
fn an_unusable_runtime_directory_is_named() {
    let place = Place::new();
    std::fs::create_dir(place.path("runtime/span")).unwrap();
    std::fs::set_permissions(place.path("runtime/span"), PermissionsExt::from_mode(0o777)).unwrap();
    let ran = place.words("up --nodes a -- true");
    assert_eq!(ran.code, 125);
    assert!(ran.line().contains("chmod 700"), "{ran:?}");
    std::fs::remove_dir(place.path("runtime/span")).unwrap();
    let other = Place::new();
    put(&place.path("linux"), &other.path("again"));
    assert_eq!(other.words("up --nodes a --kernel again -- true").code, 0);
}
