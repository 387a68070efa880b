//! Measures how functions start: `measure-start <name>=<program>...`, each a release build for this machine. Prints for each
//! the time from its start to its first request for an invocation, fastest and median; the most memory that it had by then; its
//! size, as it is and zipped; and all of them as multiples of the first one's. The median is that of a quiet machine only.

use std::{
    env, fs,
    io::{BufRead, BufReader},
    net::TcpListener,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use ami_share_tests::Result;

/// Of each program, one after the other: what else the machine does then strikes all alike.
const RUNS: usize = 11;

/// What a deployed function is told by its environment, as far as it must be there.
const ENVIRONMENT: [(&str, &str); 20] = [
    ("AWS_ACCESS_KEY_ID", "333333333333"),
    ("AWS_SECRET_ACCESS_KEY", "secret"),
    ("AWS_REGION", "eu-west-1"),
    ("AWS_LAMBDA_FUNCTION_NAME", "measured"),
    ("AWS_LAMBDA_FUNCTION_MEMORY_SIZE", "256"),
    ("AWS_LAMBDA_FUNCTION_VERSION", "1"),
    ("AWS_LAMBDA_LOG_STREAM_NAME", "log"),
    ("AWS_LAMBDA_LOG_GROUP_NAME", "log"),
    ("SOURCE_ROLE_NAME", "AmiShareSource"),
    ("SOURCE_READER_ROLE_NAME", "AmiShareSourceReader"),
    ("SOURCE_GRANT_REVOKER_ROLE_NAME", "AmiShareGrantRevoker"),
    ("TARGET_ROLE_NAME", "AmiShareTarget"),
    ("LAUNCHER_ROLE_NAME", "AmiShareLauncher"),
    ("KEY_ACCESS_POLICY_NAME", "AmiShareKeyAccess"),
    ("EXTERNAL_ID", "measured"),
    ("SOURCE_ACCOUNT_ID", "111111111111"),
    ("ALLOWED_TARGETS", "222222222222"),
    ("RECORD_TABLE_ARN", "arn:aws:dynamodb:eu-west-1:333333333333:table/notes"),
    ("STATE_MACHINE_ARN", "arn:aws:states:eu-west-1:333333333333:stateMachine:share-ami"),
    ("PROFILE_PARAMETER_PREFIX", "/ami-share/profiles"),
];

struct Program {
    name: String,
    path: String,
    starts: Vec<Duration>,
    kilobytes: Vec<u64>,
}

fn main() -> Result<()> {
    let read = |argument: String| {
        let (name, path) = argument.split_once('=').ok_or("measure-start <name>=<program>...")?;
        Ok(Program { name: name.to_owned(), path: path.to_owned(), starts: vec![], kilobytes: vec![] })
    };
    let mut programs: Vec<Program> = env::args().skip(1).map(read).collect::<Result<_>>()?;
    for _ in 0..RUNS {
        for program in &mut programs {
            let (start, kilobytes) = measure(&program.path)?;
            program.starts.push(start);
            program.kilobytes.push(kilobytes);
        }
    }
    let mut first = None;
    println!("| function | fastest start | median start | memory | size | zipped | as multiples |");
    println!("|---|---|---|---|---|---|---|");
    for Program { name, path, mut starts, mut kilobytes } in programs {
        starts.sort();
        kilobytes.sort_unstable();
        let [fastest, median] = [starts[0], starts[RUNS / 2]].map(|start| start.as_secs_f64() * 1e3);
        let memory = kilobytes[RUNS / 2] as f64 / 1e3;
        let [size, zipped] = [fs::metadata(&path)?.len(), zipped(&path)?].map(|bytes| bytes as f64 / 1e6);
        let measured = [fastest, median, memory, size, zipped];
        let first = *first.get_or_insert(measured);
        let times = measured.iter().zip(first).map(|(this, first)| format!("{:.2}", this / first));
        let times = times.collect::<Vec<_>>().join(", ");
        println!(
            "| {name} | {fastest:.1} ms | {median:.1} ms | {memory:.1} MB | {size:.1} MB | {zipped:.1} MB | {times} |"
        );
    }
    Ok(())
}

/// How many bytes Lambda gets.
fn zipped(path: &str) -> Result<u64> {
    let zipped = Command::new("gzip").args(["--stdout", path]).output()?;
    if zipped.status.success() {
        Ok(zipped.stdout.len() as u64)
    } else {
        Err(format!("gzip cannot read {path}").into())
    }
}

/// The time until the program asks for an invocation, and its `VmHWM` then, in kB.
fn measure(path: &str) -> Result<(Duration, u64)> {
    let runtime_api = TcpListener::bind("127.0.0.1:0")?;
    let mut command = Command::new(path);
    command.env_clear().envs(ENVIRONMENT).env("AWS_LAMBDA_RUNTIME_API", runtime_api.local_addr()?.to_string());
    let started = Instant::now();
    let running = Running(command.stdout(Stdio::null()).stderr(Stdio::null()).spawn()?);
    // Open until it is measured: without an answer it waits, without a connection it ends.
    let (connection, _) = runtime_api.accept()?;
    let mut line = String::new();
    BufReader::new(&connection).read_line(&mut line)?;
    let start = started.elapsed();
    if !line.contains("/runtime/invocation/next") {
        return Err(format!("{path} asked for {line:?}").into());
    }
    let status = fs::read_to_string(format!("/proc/{}/status", running.0.id()))?;
    let memory = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).ok_or("no VmHWM")?;
    Ok((start, memory.trim().trim_end_matches(" kB").parse()?))
}

/// Ends when it is dropped.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
