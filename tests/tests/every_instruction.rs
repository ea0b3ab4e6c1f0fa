//! A blow inside a save, and inside a resume, at any instruction: SIGKILL, or a second SIGPWR.
//!
//! What follows is one of the states that there are: the region is saved and goes on as if nothing had been, or it says
//! that it is not. A resume that dies before its commit has changed nothing. Points are sampled: a call that the process
//! makes from then on, and an instruction behind it; `ZHUQUE_POINTS` says how many (default 40).

use nix::sys::signal::Signal;
use zhuque_tests::command::SAVED;
use zhuque_tests::tracer::{Blow, Moment, Script, Then};
use zhuque_tests::{Finished, Guest, Life, Random, Store, digest};

/// Instructions behind a call that are tried; between two calls there are mostly fewer.
const STEPS: u64 = 4000;

fn points() -> u64 {
    zhuque_tests::points::asked(40)
}

/// Threads that take and give a lock, are born and end all the time.
fn guest() -> Guest {
    Guest::c("threads").args(["6", "300"])
}

fn native(store: &Store) -> Finished {
    let native = guest().finish_natively(store, &store.work_dir("native"));
    assert_eq!(native.status, 0, "natively: {}", native.stderr);
    native
}

/// A blow at random: few calls, any number of instructions, more often a few than many.
fn blow(random: &mut Random, calls: u64, signal: Signal) -> Then {
    let scale = 1 + random.below(STEPS);
    Then::at(random.below(calls), random.below(scale), Blow::Signal(signal))
}

#[test]
fn a_blow_inside_a_save() {
    let (store, mut random) = (Store::new(), Random::new());
    let native = native(&store);
    let (life, watched) = Life::start_watched(&store, "counted", &guest(), Script::default());
    life.end_as(&native);
    // How many calls a save makes.
    let never = Then::at(u64::MAX, 0, Blow::Signal(Signal::SIGKILL));
    let fail = Some((watched.calls / 2, Moment::Inside));
    let (mut life, counted) =
        Life::start_watched(&store, "saved", &guest(), Script { fail, then: Some(never), ..Script::default() });
    life.resume();
    life.end_as(&native);
    let (mut killed, mut saved, mut unsaved, mut again, mut missed) = (0, 0, 0, 0, 0);
    for number in 0..points() {
        let signal = if number % 2 == 0 { Signal::SIGKILL } else { Signal::SIGPWR };
        let fail = (watched.calls / 4 + random.below(watched.calls / 2), Moment::Inside);
        let script =
            Script { fail: Some(fail), then: Some(blow(&mut random, counted.calls_then, signal)), ..Script::default() };
        let (mut life, seen) = Life::start_watched(&store, &format!("save-{number}"), &guest(), script);
        let state = store.find(&life.name).map(|region| region.state);
        match (state.as_deref(), seen.struck, signal) {
            (Some("saved"), _, _) => {
                life.resume();
                life.end_as(&native);
                match (seen.struck, signal) {
                    (false, _) => missed += 1,
                    (true, Signal::SIGKILL) => saved += 1,
                    _ => again += 1,
                }
            }
            (Some("unsaved"), true, Signal::SIGKILL) => {
                unsaved += 1;
                let resumed = store.call("resume", &[&life.name]);
                if (resumed.status, resumed.stderr.lines().count()) != (125, 1) {
                    life.wrong(&format!("the resume of what was killed: {} {}", resumed.status, resumed.stderr));
                }
                assert_eq!(store.call("rm", &[&life.name]).status, 0);
            }
            (None, false, _) => {
                life.end_as(&native);
                missed += 1;
            }
            (state, _, _) => life.wrong(&format!("is {state:?} after {seen:?}")),
        }
        killed += u64::from(signal == Signal::SIGKILL && seen.struck);
    }
    println!(
        "inside a save: {killed} killed, {saved} of them saved, {unsaved} not; {again} with a second SIGPWR, all saved"
    );
    println!("{missed} had been through before the blow; a save makes {} calls", counted.calls_then);
    assert!(killed > 0 && again > 0, "nothing was tested");
}

#[test]
fn a_blow_inside_a_resume() {
    let (store, mut random) = (Store::without_ptrace(), Random::new());
    let native = native(&store);
    let (life, watched) = Life::start_watched(&store, "counted", &guest(), Script::default());
    life.end_as(&native);
    let fail = Script { fail: Some((watched.calls / 2, Moment::Inside)), ..Script::default() };
    let (mut before, mut after, mut again, mut missed) = (0, 0, 0, 0);
    // The earliest call after which a resume was seen to have been committed.
    let mut committed = 800;
    for number in 0..points() {
        let name = format!("resume-{number}");
        let (mut life, seen) = Life::start_watched(&store, &name, &guest(), fail);
        if seen.status != SAVED {
            life.wrong("was not saved");
        }
        let whole = digest::of(&store.region(&name));
        let signal = if number % 3 == 2 { Signal::SIGPWR } else { Signal::SIGKILL };
        let then = blow(&mut random, committed + 30, signal);
        let seen = life.resume_watched(Script { then: Some(then), ..Script::default() });
        let region = store.find(&name);
        match (region.as_ref().map(|region| region.state.as_str()), signal) {
            (Some("saved"), Signal::SIGKILL) if seen.struck && seen.status != SAVED => {
                if let Some(difference) = digest::difference(&whole, &digest::of(&store.region(&name))) {
                    life.wrong(&format!(
                        "a resume that was killed before its commit has changed the region: {difference}"
                    ));
                }
                life.resume();
                life.end_as(&native);
                before += 1;
            }
            (Some("unsaved"), Signal::SIGKILL) if seen.struck => {
                assert_eq!(store.call("rm", &[&name]).status, 0);
                committed = committed.min(then.calls);
                after += 1;
            }
            (Some("saved"), Signal::SIGPWR) if seen.status == SAVED => {
                life.resume();
                life.end_as(&native);
                again += 1;
            }
            (None, _) if !seen.struck || signal == Signal::SIGPWR => {
                life.end_as(&native);
                missed += 1;
            }
            (state, _) => life.wrong(&format!("is {state:?} after {seen:?}")),
        }
    }
    println!(
        "inside a resume: {before} killed before the commit, {after} after it; {again} with a SIGPWR, all saved again"
    );
    println!("{missed} had been through before the blow; a commit came before call {committed}");
    assert!(before > 0 && again > 0, "nothing was tested");
}
