//! The README's first mail, command by command as it is written there.

use blackbox::{Site, binary, program, shared_folder, skip};
use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// The mail is seen this soon after the server has started (issue: within a minute).
const SEEN_S: u64 = 60;
/// All of it, what cargo looks at included, takes no longer.
const BOUND: Duration = Duration::from_secs(240);

/// The commands of a section's console blocks, in order.
fn commands(section: &str) -> Vec<String> {
    let mut commands: Vec<String> = Vec::new();
    let mut inside = false;
    for line in section.lines() {
        if line.starts_with("```") {
            inside = line == "```console";
        } else if inside && let Some(command) = line.strip_prefix("$ ") {
            commands.push(command.to_owned());
        } else if inside && let Some(command) = commands.last_mut() {
            command.push('\n');
            command.push_str(line);
        }
    }
    commands
}

/// Runs in namespaces of its own: the README's port is fixed, and what was started ends with the script.
fn run(script: &Path, target: &Path) -> Option<String> {
    let mut command = Command::new("unshare");
    command.args(["--net", "--pid", "--fork", "--kill-child", "--mount-proc", "sh", "-e"]).arg(script);
    command.current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("../.."));
    // What nextest sets for the tests would make cargo build everything anew.
    for (name, _) in std::env::vars_os() {
        let name = name.to_string_lossy();
        if name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_") {
            command.env_remove(&*name);
        }
    }
    command.env("CARGO_TARGET_DIR", target).env("CARGO_NET_OFFLINE", "true");
    let output = script.with_extension("output");
    let file = fs::File::create(&output).unwrap();
    command.stdin(Stdio::null()).stdout(file.try_clone().unwrap()).stderr(file);
    let mut child = command.spawn().unwrap();
    let started = Instant::now();
    let status = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break status;
        }
        if started.elapsed() > BOUND {
            child.kill().unwrap();
            let _ = child.wait();
            panic!("it hangs:\n{}", fs::read_to_string(&output).unwrap());
        }
        std::thread::sleep(Duration::from_millis(20));
    };
    let output = fs::read_to_string(&output).unwrap();
    if !status.success() && output.starts_with("unshare: ") {
        eprintln!("SKIPPED: {output}");
        return None;
    }
    assert!(status.success(), "{output}");
    Some(output)
}

#[test]
fn the_first_mail_is_seen_within_a_minute_of_the_start() {
    for (name, package) in [("swaks", "swaks"), ("curl", "curl"), ("python3", "python3")] {
        if let Err(why) = program(name, package) {
            skip!("{why:#}");
        }
    }
    let readme = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../../README.md")).unwrap();
    let (_, section) = readme.split_once("## First mail in a minute\n").unwrap();
    let (section, _) = section.split_once("\n## ").unwrap();
    let mut commands = commands(section);
    assert_eq!(commands.remove(0), "cargo xtask run");
    assert_eq!(commands.len(), 5, "{commands:?}");

    let site = Site::new();
    let data = site.path("try");
    // Built before, so that the time is the server's.
    let built = binary();
    let target = shared_folder("readme");
    let target = target.ancestors().nth(2).unwrap();
    let connect = "import socket; socket.create_connection(('127.0.0.1', 2525), 1)";
    let up = "import fcntl, socket, struct; fcntl.ioctl(socket.socket(), 0x8914, struct.pack('16sh14x', b'lo', 0x49))";
    let mut script = format!(
        "python3 -c \"{up}\"\ncargo xtask run -- --data-dir {data} &\n\
         until python3 -c \"{connect}\" 2>/dev/null; do sleep 0.1; done\nbegan=$(date +%s)\n",
        data = data.display(),
    );
    let client = "cargo run -q --profile quick -p postrider -- --data-dir try ";
    for command in &commands {
        let here = command.replace(client, &format!("{} --data-dir {} ", built.display(), data.display()));
        assert!(here != *command || !command.starts_with("cargo"), "{command}");
        // A capture is an attempt like any other: it follows the 250, so that looking may be too early.
        if here.contains("sandbox list") {
            let _ =
                writeln!(script, "until [ $({here} --json | grep -c '\"id\"') -ge 3 ]; do sleep 0.1; done");
        }
        let _ = writeln!(script, "echo '--- next'\n{here}");
    }
    script += "echo \"--- next\nseen after $(($(date +%s) - began)) s\"\n";
    let Some(output) = run(&site.write("first-mail.sh", script), target) else { return };
    let parts: Vec<_> = output.split("--- next\n").collect();
    let [_, sent, swaks, _curl, listed, shown, seen] = &parts[..] else { panic!("{output}") };
    assert!(sent.contains("accepted") || sent.contains("Accepted"), "{sent}");
    assert!(swaks.contains("250 2.0.0 Accepted"), "{swaks}");
    assert_eq!(listed.matches("bob@example.net").count(), 3, "{listed}");
    assert!(listed.contains("Hello"), "{listed}");
    assert!(shown.contains("Subject: Hello") && shown.contains("It works."), "{shown}");
    let seconds = seen.trim().strip_prefix("seen after ").and_then(|rest| rest.strip_suffix(" s"));
    assert!(seconds.unwrap().parse::<u64>().unwrap() < SEEN_S, "{seen}");
}
