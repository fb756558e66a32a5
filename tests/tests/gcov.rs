//! A kernel that counts how often its lines are executed: each node counts for itself. `SPAN_GCOV` names the product.

use span_tests::{Detached, Up, World, on};
use std::path::{Path, PathBuf};
use std::process::Command;

/// The function whose calls are counted here: one for each directory that is made on hostfs.
const FUNCTION: &str = "hostfs_mkdir";

fn product() -> Option<PathBuf> {
    let directory = std::env::var_os("SPAN_GCOV").map(PathBuf::from);
    if directory.is_none() {
        span_tests::not_tested(
            "counted lines: SPAN_GCOV is not set to the product of `cargo dev build --gcov fs/hostfs`",
        );
    }
    directory
}

/// How often a node has called the function, by what gcov says on the host.
fn calls(world: &World, guest: &Detached<'_>, node: &str) -> u64 {
    on(
        guest,
        node,
        "rm -rf /tmp/counted && cp -r /sys/kernel/debug/gcov /tmp/counted",
    );
    let to = world.path("work").join(format!("counted-{node}"));
    let mut copy = world.command("coordinator");
    let copied = copy.arg("cp").arg("counted:/tmp/counted").arg(&to).status();
    assert!(copied.expect("coordinator").success());
    let counters = find(&to, "hostfs_kern.gcda").expect("counters");
    let said = Command::new("gcov")
        .args(["--json-format", "--stdout", "-o"])
        .arg(counters.parent().expect("a directory"))
        .arg("hostfs_kern.c")
        .env("PATH", span_tests::PATH)
        .current_dir(world.path("work"))
        .output()
        .expect("gcov");
    assert!(said.status.success(), "{said:?}");
    let said: serde_json::Value = serde_json::from_slice(&said.stdout).expect("JSON");
    let files = said["files"].as_array().expect("files").iter();
    let mut functions = files.flat_map(|file| file["functions"].as_array().expect("functions"));
    let function = functions.find(|function| function["name"] == FUNCTION);
    function.expect("the function")["execution_count"]
        .as_u64()
        .expect("a number")
}

fn find(directory: &Path, name: &str) -> Option<PathBuf> {
    let entries = std::fs::read_dir(directory).ok()?;
    let mut paths = entries.filter_map(|entry| Some(entry.ok()?.path()));
    paths.find_map(|path| match path.is_dir() {
        true => find(&path, name),
        false => path.ends_with(name).then_some(path),
    })
}

#[test]
fn each_node_counts_what_it_executes() {
    let Some(product) = product() else {
        return;
    };
    let counted = [
        ("solo", &[("solo", 3)][..]),
        ("a,b,c", &[("a", 0), ("b", 37), ("c", 5)]),
    ];
    for (nodes, counts) in counted {
        let world = World::new();
        let here = world.path("work").join("here");
        std::fs::create_dir(&here).expect("a directory");
        let guest = Up::on(&world, nodes)
            .product(&product)
            .option("--hostfs")
            .option(format!("{}=/h", here.display()))
            .detach("counted");
        for (node, times) in counts {
            let script = format!(
                "mountpoint -q /sys/kernel/debug || mount -t debugfs none /sys/kernel/debug; \
                 cd /h; for n in $(seq {times}); do mkdir {node}$n; done"
            );
            on(&guest, node, &script);
        }
        for (node, times) in counts {
            assert_eq!(calls(&world, &guest, node), *times, "{node} of {nodes}");
        }
        assert_eq!(
            std::fs::read_dir(&here).expect("a directory").count() as u64,
            counts.iter().map(|(_, times)| times).sum::<u64>()
        );
        guest.down().expect(0);
        world.assert_clean();
    }
}
