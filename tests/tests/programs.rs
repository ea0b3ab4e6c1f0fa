//! Unmodified programs from packages: three power failures in one life, and output as if there had been none.

use std::fs;
use std::process::{Command, Stdio};
use std::time::Duration;
use zhuque_tests::command::{PATIENCE, finish, until, wait};
use zhuque_tests::guest::{Guest, build, shared};
use zhuque_tests::{Random, Store, check_lives, life};

#[test]
fn cpython_with_threads_sqlite_and_children() {
    let entries = if std::env::var_os("ZHUQUE_SMALL").is_some() { "200000" } else { "1000000" };
    check_lives(&Guest::python("hashing.py").args([entries, "."]).patience(Duration::from_secs(120)), 8);
}

#[test]
fn sqlite3_shell_in_a_long_transaction() {
    let script = shared("transaction.sql");
    let read = format!(".read '{}'", script.display());
    check_lives(&Guest::installed("sqlite3").args(["-batch", "rows.db", &read]), 3);
}

#[test]
fn lua() {
    check_lives(&Guest::installed("lua5.4").arg(shared("tables.lua")).arg("700"), 3);
}

#[test]
fn perl() {
    check_lives(&Guest::installed("perl").arg(shared("words.pl")).arg("240"), 3);
}

#[test]
fn bash_in_a_loop_of_builtins() {
    check_lives(&Guest::installed("bash").arg(shared("builtins.sh")).arg("60"), 3);
}

/// Another C library: it calls constructors without arguments, cancels threads in its own way, and frees its own stack.
#[test]
fn programs_of_musl() {
    let guests: [(&str, &[&str]); 4] =
        [("threads", &["4", "12000"]), ("cancel", &["30"]), ("fork", &["30"]), ("robust", &["100"])];
    for (name, arguments) in guests {
        match Guest::musl(name) {
            Some(guest) => check_lives(&guest.args(arguments.iter().copied()), 1),
            None => println!("not possible here: musl-gcc (musl-tools) is not installed"),
        }
    }
}

/// Standard input from a file goes on where it was, whatever the resume's is. bash takes back what it has read too much.
#[test]
fn standard_input_from_a_file() {
    let store = Store::new();
    let numbers = store.beside("numbers");
    fs::write(&numbers, (0..120_000).map(|n| format!("{n}\n")).collect::<String>()).expect("numbers");
    let script = "s=0; while read -r x; do s=$(((s * 31 + x) % 1000003)); done; echo $s";
    let mut native = Command::new("bash");
    native.args(["-c", script]).stdin(fs::File::open(&numbers).expect("numbers"));
    let expected = finish(native, PATIENCE);
    let mut command = store.zhuque("run");
    command.args(["-n", "input", "--", "bash", "-c", script]).stdin(fs::File::open(&numbers).expect("numbers"));
    for _ in 0..3 {
        let mut zhuque = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("zhuque");
        assert!(until(PATIENCE, || store.find("input").filter(|found| found.state == "running")).is_some());
        std::thread::sleep(Duration::from_millis(30));
        assert_eq!(store.call("fail", &["input"]).status, 0, "it ended too early");
        assert!(wait(&mut zhuque, PATIENCE).is_some());
        command = store.zhuque("resume");
        command.arg("input");
    }
    let ended = finish(command, PATIENCE);
    assert_eq!((ended.status, ended.stdout), (0, expected.stdout), "{}", ended.stderr);
}

#[test]
fn xz_with_two_threads() {
    let store = Store::new();
    let input = store.beside("input");
    let mut random = Random::from_seed(11);
    let words: Vec<String> = (0..500).map(|_| format!("{:x} ", random.below(1 << 30))).collect();
    let text: String = (0..1_600_000).map(|_| words[random.below(500) as usize].as_str()).collect();
    fs::write(&input, text).expect("input");
    let guest = Guest::installed("xz").args(["-T2", "-2", "--block-size=1MiB", "-c"]).arg(&input);
    life::check_lives_in(&store, &guest, 3);
}

#[test]
fn programs_that_replace_themselves() {
    check_lives(&Guest::new(build("execs")).arg("300"), 3);
}

#[test]
fn a_program_behind_a_shell_wrapper() {
    let program = build("threads");
    let command = format!("exec '{}' 4 20000", program.display());
    check_lives(&Guest::installed("sh").arg("-c").arg(command), 2);
}

/// A limit of file sizes binds the program, not what an exec writes into the region.
#[test]
fn an_exec_under_a_limit_of_file_sizes() {
    let store = Store::new();
    let ended = store.call("run", &["-n", "x", "--", "bash", "-c", "ulimit -f 0; exec /bin/echo hello"]);
    assert_eq!((ended.status, ended.stdout.as_slice()), (0, b"hello\n".as_slice()), "{}", ended.stderr);
}
