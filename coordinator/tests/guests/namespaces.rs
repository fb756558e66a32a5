//! Three hosts: network, pid and mount namespaces of their own for each of two daemons, which see none of
//! the coordinator's files. Works without privileges, in a user namespace.

use crate::support::{Place, TOKEN, put};
use std::fs;
use std::process::Command;

/// Makes the hosts, runs the coordinator and takes everything down again. Arguments: the place.
const SCRIPT: &str = r#"
set -eu
place=$1
ip link set lo up
ip link add br0 type bridge
ip addr add 10.77.0.1/24 dev br0
ip link set br0 up

host() { # NAME ADDRESS
    mkfifo "$place/$1.go"
    # All of the place but the host's own part is hidden from it.
    unshare --net --pid --mount --fork --kill-child --mount-proc sh -c '
        read line <"$1/$2.go"
        mkdir -p /tmp/host
        mount -t tmpfs none /tmp/host
        cp "$1/node" "$1/token" /tmp/host/
        chmod 600 /tmp/host/token
        mount -t tmpfs none "$1"
        ip link set lo up
        ip addr add "$3/24" dev eth0
        ip link set eth0 up
        test ! -e "$1/linux"
        exec /tmp/host/node serve --listen "$3:7000" --token-file /tmp/host/token --state-dir /tmp/host/state
    ' sh "$place" "$1" "$2" >"$place/$1.out" 2>"$place/$1.log" &
    eval "pid_$1=$!"
    # The namespace exists once the process that makes it has left ours.
    while [ "$(readlink /proc/$!/ns/net)" = "$(readlink /proc/self/ns/net)" ]; do sleep 0.01; done
    ip link add "veth-$1" type veth peer name eth0 netns $!
    ip link set "veth-$1" master br0 up
    echo go >"$place/$1.go"
    while ! grep -q listening "$place/$1.out"; do sleep 0.01; kill -0 $!; done
}
host b 10.77.0.2
host c 10.77.0.3

up() { "$place/coordinator" up --token-file "$place/token" "$@"; }
echo in | up --nodes a,b=10.77.0.2:7000,c=10.77.0.3:7000 -- sh -c 'cat; exit 7' || echo "local first: $?"
echo in | up --nodes b=10.77.0.2:7000,a,c=10.77.0.3:7000 -- sh -c 'cat; hostname -I; exit 8' || echo "remote first: $?"

# A host that disappears from the network.
up --nodes a,b=10.77.0.2:7000,c=10.77.0.3:7000 -- sh -c 'echo up; exec sleep 100' >"$place/up.out" 2>"$place/up.err" &
coordinator=$!
while ! grep -q up "$place/up.out"; do sleep 0.01; done
begin=$(date +%s%N)
ip link set veth-c down
code=0
wait $coordinator || code=$?
end=$(date +%s%N)
echo "unplugged: $code in $(( (end - begin) / 1000000 )) ms"
grep '^coordinator: ' "$place/up.err"

kill -TERM $(cat /proc/$pid_b/task/$pid_b/children)
wait $pid_b || echo "daemon: $?"
kill -TERM $(cat /proc/$pid_c/task/$pid_c/children)
wait $pid_c || echo "daemon: $?"
"#;

#[test]
fn nodes_on_hosts_that_share_nothing() {
    let place = Place::new();
    place.secret("token", TOKEN);
    fs::create_dir(place.path("empty")).unwrap();
    put(&place.path("linux"), &place.path("kept"));
    let output = Command::new("unshare")
        .args([
            "--user",
            "--map-root-user",
            "--net",
            "--mount",
            "--",
            "sh",
            "-c",
            SCRIPT,
            "sh",
        ])
        .arg(place.path(""))
        .env("XDG_RUNTIME_DIR", place.path("runtime"))
        .output()
        .unwrap();
    let (out, err) = (
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
    );
    let log = |name: &str| fs::read_to_string(place.path(name)).unwrap_or_default();
    let logs = format!("{out}\n{err}\nb: {}\nc: {}", log("b.log"), log("c.log"));
    assert!(output.status.success(), "{logs}");
    assert!(out.contains("in\nlocal first: 7\n"), "{logs}");
    assert!(out.contains("in\n10.77.0.2"), "{logs}");
    assert!(out.contains("remote first: 8\n"), "{logs}");
    assert!(out.contains("coordinator: node c was lost"), "{logs}");
    assert!(!out.contains("daemon:"), "{logs}");
    let unplugged = out
        .lines()
        .find_map(|line| line.strip_prefix("unplugged: 70 in "))
        .expect(&logs);
    let ms: u64 = unplugged.strip_suffix(" ms").unwrap().parse().unwrap();
    assert!(ms < crate::support::END_MS_MAX, "{ms}");
}
