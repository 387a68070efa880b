//! `make measure`: how long each function takes to start, what memory it has then, and how large it is, beside one that
//! does nothing.

use std::{
    env, fs,
    io::{BufRead, BufReader},
    net::{Ipv4Addr, TcpListener},
    path::Path,
    process::{Child, Command, ExitCode, Stdio},
    time::{Duration, Instant},
};

use ami_share_tests::{HUB, REGION, Result, SOURCE, checkout::checkout, template};

/// Odd, so that one of them is the median.
const STARTS: usize = 11;
const EMPTY: &str = "empty-function";

fn main() -> ExitCode {
    match measure() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("The functions could not be measured: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Of one start.
#[derive(Clone, Copy)]
struct Start {
    took: Duration,
    /// Resident memory in kB when it asked for its first event.
    memory: u64,
}

fn measure() -> Result<()> {
    let folder = env::args_os().nth(1).ok_or("where are the programs?")?;
    let program = |name: &str| Path::new(&folder).join(name);
    let template = template::read(&checkout().join("template.yaml"))?;
    let functions = template::resources(&template, "AWS::Serverless::Function");
    let names = functions.filter_map(|(_, function)| function["Metadata"]["BuildProperties"]["Binary"].as_str());
    let mut names: Vec<&str> = names.collect();
    names.sort_unstable();
    names.insert(0, EMPTY);

    // Round by round: what else the machine does hits all alike.
    let mut starts = vec![Vec::with_capacity(STARTS); names.len()];
    for _ in 0..STARTS {
        for (name, starts) in names.iter().zip(&mut starts) {
            starts.push(start(&program(name)).map_err(|error| format!("{name}: {error}"))?);
        }
    }

    println!("| function | start, ms | times | memory, MB | times | size, MB | zipped, MB |");
    println!("|---|---|---|---|---|---|---|");
    let empty = medians(&starts[0]);
    for (name, starts) in names.iter().zip(&starts) {
        let (took, memory) = medians(starts);
        let (size, zipped) = sizes(&program(name))?;
        println!(
            "| `{name}` | {took:.1} | {:.1} | {memory:.1} | {:.1} | {size:.1} | {zipped:.2} |",
            took / empty.0,
            memory / empty.1
        );
    }
    Ok(())
}

/// Starts it before a runtime API of its own, as Lambda does, and ends it when it asks for its first event.
fn start(program: &Path) -> Result<Start> {
    let api = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let mut command = Command::new(program);
    command
        .env_clear()
        .env("AWS_LAMBDA_RUNTIME_API", api.local_addr()?.to_string())
        .env("AWS_LAMBDA_FUNCTION_NAME", "measured")
        .env("AWS_LAMBDA_FUNCTION_MEMORY_SIZE", "128")
        .env("AWS_LAMBDA_FUNCTION_VERSION", "$LATEST")
        .env("AWS_REGION", REGION)
        .env("AWS_ACCESS_KEY_ID", "ASIA0123456789ABCDEF")
        .env("AWS_SECRET_ACCESS_KEY", "secret")
        .env("AWS_SESSION_TOKEN", "token")
        .env("SOURCE_ROLE_NAME", "AmiShareSource")
        .env("TARGET_ROLE_NAME", "AmiShareTarget")
        .env("LAUNCHER_ROLE_NAME", "AmiShareLauncher")
        .env("KEY_ACCESS_POLICY_NAME", "AmiShareKeyAccess")
        .env("EXTERNAL_ID", "measured")
        .env("SOURCE_ACCOUNT_ID", SOURCE)
        .env("RECORD_TABLE_ARN", format!("arn:aws:dynamodb:{REGION}:{HUB}:table/records"))
        .env("STATE_MACHINE_ARN", format!("arn:aws:states:{REGION}:{HUB}:stateMachine:share-ami"))
        .env("PROFILE_PARAMETER_PREFIX", "/ami-share/profiles")
        .stdout(Stdio::null());
    let started = Instant::now();
    let mut function = command.spawn()?;
    let measured = first_question(&api, started, &mut function);
    function.kill()?;
    function.wait()?;
    measured
}

fn first_question(api: &TcpListener, started: Instant, function: &mut Child) -> Result<Start> {
    api.set_nonblocking(true)?;
    let connection = loop {
        match api.accept() {
            Ok((connection, _)) => break connection,
            Err(_) if function.try_wait()?.is_some() => return Err("it ended before it asked for an event".into()),
            Err(_) => std::thread::sleep(Duration::from_micros(20)),
        }
    };
    connection.set_nonblocking(false)?;
    let mut question = String::new();
    BufReader::new(connection).read_line(&mut question)?;
    let took = started.elapsed();
    if !question.starts_with("GET /2018-06-01/runtime/invocation/next ") {
        return Err(format!("it asked {question:?}").into());
    }
    let status = fs::read_to_string(format!("/proc/{}/status", function.id()))?;
    let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).ok_or("it has no VmRSS")?;
    let memory = resident.trim().trim_end_matches(" kB").parse()?;
    Ok(Start { took, memory })
}

/// In milliseconds and MB.
fn medians(starts: &[Start]) -> (f64, f64) {
    let mut took: Vec<f64> = starts.iter().map(|start| start.took.as_secs_f64() * 1000.0).collect();
    let mut memory: Vec<u64> = starts.iter().map(|start| start.memory).collect();
    took.sort_by(f64::total_cmp);
    memory.sort_unstable();
    #[expect(clippy::cast_precision_loss, reason = "some thousands of kB")]
    let memory = memory[STARTS / 2] as f64 / 1000.0;
    (took[STARTS / 2], memory)
}

/// In MB: as it is, and zipped, as Lambda gets it.
fn sizes(program: &Path) -> Result<(f64, f64)> {
    let zipped = Command::new("gzip").arg("--stdout").arg(program).output()?;
    if !zipped.status.success() {
        return Err(String::from_utf8_lossy(&zipped.stderr).into_owned().into());
    }
    #[expect(clippy::cast_precision_loss, reason = "some millions of bytes")]
    let [size, zipped] = [fs::metadata(program)?.len(), zipped.stdout.len() as u64].map(|bytes| bytes as f64 / 1e6);
    Ok((size, zipped))
}
