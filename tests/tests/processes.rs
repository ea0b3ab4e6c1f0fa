//! Children: the program's own memory is unaffected by what they do, and a lost one shows as ended by SIGPWR.

use nix::sys::ptrace;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::waitpid;
use nix::unistd::Pid;
use std::fs;
use std::process::{Command, Stdio};
use std::time::Duration;
use zhuque_tests::command::until;
use zhuque_tests::life::{Announce, check_lives_in};
use zhuque_tests::{Guest, Life, Store, check_lives};

#[test]
fn children_of_every_kind() {
    check_lives(&Guest::c("fork").arg("150").patience(Duration::from_secs(120)), 4);
}

/// A child that had ended but had not been waited for when power failed shows its own status, not SIGPWR.
#[test]
fn children_that_had_ended() {
    check_lives(&Guest::c("ended").arg("60"), 4);
}

/// A failure during a vfork, when the program itself hears nothing, is not forgotten.
#[test]
fn a_program_that_is_mostly_in_vfork() {
    check_lives(&Guest::c("vforks").arg("60"), 3);
}

/// A child that still borrows the program's memory holds the region: only for as long as it does.
#[test]
fn a_region_of_which_a_child_is_left_can_be_removed() {
    let store = Store::new();
    let mut command = store.zhuque("run");
    command.args(["-n", "borrowed", "--"]).arg(Guest::c("vforks").program).args(["1", "1000"]);
    let mut launcher = command.stdin(Stdio::null()).stderr(Stdio::null()).spawn().expect("run");
    let running = || store.find("borrowed").filter(|region| region.state == "running");
    let pid = until(Duration::from_secs(10), running).expect("it runs").pid;
    let stat = || fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    assert!(until(Duration::from_secs(10), || stat().contains(") D ").then_some(())).is_some(), "no vfork was seen");
    kill(Pid::from_raw(pid), Signal::SIGKILL).expect("kill it");
    launcher.wait().expect("its end");
    let removed = store.call("rm", &["borrowed"]);
    assert_eq!(removed.status, 0, "{}", removed.stderr);
}

#[test]
fn attributes_of_the_process() {
    check_lives(&Guest::python("attributes.py"), 3);
}

#[test]
fn a_main_thread_that_has_ended() {
    check_lives(&Guest::c("leader"), 4);
}

/// By an ordinary user, and by root, who has something to give up.
#[test]
fn what_a_process_has_given_up() {
    check_lives(&Guest::c("privileges"), 2);
    check_lives_in(&Store::of_caller(), &Guest::c("privileges"), 2);
}

/// Whoever is stopped takes no signal, until the failure.
#[test]
fn a_stopped_program() {
    let store = Store::new();
    let guest = Guest::c("threads");
    let expected = guest.finish_natively(&store, &store.work_dir("native"));
    for (number, stop) in [Signal::SIGSTOP, Signal::SIGTSTP].into_iter().enumerate() {
        let mut life = Life::start(&store, &format!("stopped-{number}"), &guest);
        let pid = life.up().pid;
        kill(Pid::from_raw(pid), stop).expect("stop it");
        let stat = || fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        if until(Duration::from_millis(500), || stat().contains(") T ").then_some(())).is_none() {
            // Nobody could let it go on: the kernel does not stop it (an orphaned process group).
            assert_eq!(stop, Signal::SIGTSTP, "it is not stopped");
            println!("not tried: {stop}");
        }
        if !life.fail(Announce::Fail) {
            life.wrong("is not saved");
        }
        life.resume();
        assert_eq!(life.end().stdout, expected.stdout);
    }
}

/// A thread that somebody holds up for longer than a failure takes to announce itself: as long as the power supply does.
#[test]
fn a_program_that_is_held_up() {
    let store = Store::new();
    let mut command = store.zhuque("run");
    command.args(["--hold-up", "60s", "-n", "held", "--", "/bin/sleep", "1000"]);
    let mut launcher = command.stdin(Stdio::null()).stderr(Stdio::null()).spawn().expect("run");
    let running = || store.find("held").filter(|region| region.state == "running");
    let pid = Pid::from_raw(until(Duration::from_secs(10), running).expect("it runs").pid);
    ptrace::seize(pid, ptrace::Options::empty()).expect("trace it");
    ptrace::interrupt(pid).expect("stop it");
    waitpid(pid, None).expect("it stops");
    let failed = std::thread::scope(|scope| {
        let failing = scope.spawn(|| store.call("fail", &["held"]));
        std::thread::sleep(Duration::from_secs(12));
        ptrace::detach(pid, None).expect("let it go");
        failing.join().expect("a result")
    });
    assert_eq!(store.call("rm", &["held"]).status, 0);
    launcher.wait().expect("its end");
    assert_eq!(failed.status, 0, "{}", failed.stderr);
}

/// Programs that a child executes have the descriptors that they would have natively, in every life.
#[test]
fn children_inherit_nothing_of_the_region() {
    let script = "\
import subprocess
for step in range(150):
  ran = None
  while ran is None or ran.returncode != 0:
    ran = subprocess.run(['ls', '/proc/self/fd'], stdout=subprocess.PIPE, close_fds=False)
  print(len(ran.stdout.split()))";
    check_lives(&Guest::installed("python3").args(["-c", script]), 2);
}

/// A save needs descriptors of its own, whatever the program's limit is and whoever has set it.
#[test]
fn a_program_that_has_taken_all_descriptors() {
    let guest = Guest::python("full_descriptors.py").arg("900");
    check_lives(&guest, 3);
    let limited = Guest::installed("sh").args(["-c", "ulimit -n 64; exec \"$@\"", "sh"]);
    check_lives(&limited.arg(&guest.program).args(&guest.arguments), 3);
}

/// One that has more descriptors open than its limit allows by now, as far above it as a save needs some.
#[test]
fn a_program_with_more_descriptors_than_its_limit() {
    check_lives(&Guest::python("full_descriptors.py").args(["400", "5"]), 2);
}

/// A device whose driver's state would be lost is refused at once; what natively fails fails in the same way.
#[test]
fn devices_of_unknown_kinds() {
    let store = Store::of_caller();
    let script = "\
import os
for name in 'null zero full urandom autofs fuse kvm loop-control'.split():
  try:
    print(name, os.open('/dev/' + name, os.O_RDONLY) > 0)
  except OSError as e:
    print(name, e.strerror)";
    let python = Guest::installed("python3").args(["-c", script]);
    let native = python.finish_natively(&store, &store.work_dir("native"));
    let is = store.call("run", &["-n", "devices", "--", "/usr/bin/python3", "-c", script]);
    let native = String::from_utf8_lossy(&native.stdout).into_owned();
    let kept = ["null", "zero", "full", "urandom"];
    let expected = native.lines().map(|line| match line.strip_suffix(" True") {
        Some(name) if !kept.contains(&name) => format!("{name} No such device\n"),
        _ => format!("{line}\n"),
    });
    let expected: String = expected.collect();
    assert_eq!((is.status, String::from_utf8_lossy(&is.stdout).into_owned()), (0, expected), "{}", is.stderr);
}

/// A descriptor that no resume could make again is refused when the program asks for it.
#[test]
fn sockets_of_unknown_families() {
    let store = Store::new();
    let script =
        "import socket\ntry:\n  socket.socket(40, socket.SOCK_STREAM)\nexcept OSError as e:\n  print(e.strerror)";
    let is = store.call("run", &["-n", "vsock", "--", "/usr/bin/python3", "-c", script]);
    let said = &is.stderr;
    let expected = "Address family not supported by protocol\n";
    assert_eq!((is.status, String::from_utf8_lossy(&is.stdout).as_ref()), (0, expected), "{said}");
    assert!(said.contains("socket of family 40, type 1 is refused: "), "{said}");
}

/// Scripts whose interpreters are scripts: executed, and where the last one is missing, the program goes on.
#[test]
fn an_exec_of_scripts_of_scripts() {
    let store = Store::new();
    let chain = |name: &str, last: &str| {
        let mut interpreter = last.to_owned();
        for depth in 0..4 {
            let path = store.beside(&format!("{name}-{depth}"));
            fs::write(&path, format!("#!{interpreter}\necho \"through $#\"\n")).expect("a script");
            store.give(&path, 0o755);
            interpreter = path.display().to_string();
        }
        interpreter
    };
    let (broken, whole) = (chain("broken", "/nowhere/at/all"), chain("whole", "/bin/sh"));
    let script = format!(
        "import os\ntry:\n  os.execv('{broken}', ['x'])\nexcept OSError as e:\n  print(e.strerror, flush=True)\n\
         os.execv('{whole}', ['x', 'last'])"
    );
    let is = store.call("run", &["-n", "scripts", "--", "/usr/bin/python3", "-c", &script]);
    let expected = "No such file or directory\nthrough 4\n";
    assert_eq!((is.status, String::from_utf8_lossy(&is.stdout).as_ref()), (0, expected), "{}", is.stderr);
}

/// What would run on without zhuque, in silence, is refused by name instead.
#[test]
fn an_exec_that_would_be_unprotected() {
    let store = Store::new();
    let source = store.beside("plain.c");
    fs::write(&source, "int main(void) { return 0; }\n").expect("source");
    let fixed = store.beside("static");
    let made = Command::new("cc").arg("-static").arg("-o").arg(&fixed).arg(&source).status();
    assert!(made.is_ok_and(|status| status.success()), "a static program (libc6-dev)");
    store.give(&fixed, 0o755);
    let script = format!("'{0}' && echo child; exec '{0}'", fixed.display());
    let is = store.call("run", &["-n", "unprotected", "--", "/bin/sh", "-c", &script]);
    let said = &is.stderr;
    assert_eq!((is.status, String::from_utf8_lossy(&is.stdout).as_ref()), (126, "child\n"), "{said}");
    assert!(said.contains("is refused: it is linked statically"), "{said}");
}
