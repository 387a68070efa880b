//! The local engine: ministack, as a child process.

use std::{
    fs::{self, File},
    io::{Read, Write},
    net::{Ipv4Addr, TcpListener, TcpStream},
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

pub use crate::checkout::checkout;
use crate::{REGION, Result, clients::SECRET};

/// How much of a Wait state's or a retry's time passes.
const WAIT_SCALE: &str = "0.01";
const START_TIMEOUT: Duration = Duration::from_secs(30);
const STOP_TIMEOUT: Duration = Duration::from_secs(5);

/// A command of the virtual environment that `make setup` makes.
pub fn tool(name: &str) -> Result<Command> {
    let path = checkout().join(".venv/bin").join(name);
    if !path.exists() {
        return Err(format!("{} is missing: run `make setup`", path.display()).into());
    }
    Ok(Command::new(path))
}

/// A running engine. It ends, with all its functions and files, when this is dropped or the
/// process that holds it ends in any way.
#[derive(Debug)]
pub struct Engine {
    child: Child,
    port: u16,
    directory: PathBuf,
}

impl Engine {
    /// Starts on a port that [`listen`] opened; the functions' EC2, KMS, IAM, STS and Organizations calls go to
    /// `sandbox`. `directory` is made, and removed at the end.
    pub fn start(listener: TcpListener, sandbox: &str, directory: &Path, stale_read_seconds: u32) -> Result<Self> {
        let port = listener.local_addr()?.port();
        fs::create_dir_all(directory)?;
        let log = File::create(directory.join("engine.log"))?;
        let child = tool("python")?
            .arg(checkout().join("tests/engine/launch.py"))
            .env_clear()
            .env("PATH", "/usr/local/bin:/usr/bin:/bin")
            .env("TMPDIR", directory)
            .env("GATEWAY_PORT", port.to_string())
            .env("MINISTACK_REGION", REGION)
            .env("SFN_WAIT_SCALE", WAIT_SCALE)
            .env("SFTP_ENABLED", "0")
            .env("IOT_MTLS_ENABLED", "0")
            // Calls are authorized, and functions get the credentials of their own role.
            .env("AUTH", "true")
            .env("AWS_SECRET_ACCESS_KEY", SECRET)
            // The rest is for the functions, which inherit this environment.
            .env("AWS_ENDPOINT_URL", endpoint(port))
            .env("STALE_READ_SECONDS", stale_read_seconds.to_string())
            .envs(
                ["EC2", "KMS", "IAM", "STS", "ORGANIZATIONS"]
                    .map(|service| (format!("AWS_ENDPOINT_URL_{service}"), sandbox)),
            )
            .stdin(Stdio::piped())
            // An open port cannot be taken by anybody else before the engine is there: see engine/launch.py.
            .stdout(OwnedFd::from(listener))
            .stderr(log)
            .spawn()?;
        let mut engine = Self { child, port, directory: directory.to_owned() };
        engine.wait_until_ready()?;
        Ok(engine)
    }

    /// `http://127.0.0.1:<port>`
    pub fn endpoint(&self) -> String {
        endpoint(self.port)
    }

    /// Where the engine keeps its log, `engine.log`, and where the deployment may put files.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    fn wait_until_ready(&mut self) -> Result<()> {
        let started = Instant::now();
        while !is_ready(self.port) {
            if self.child.try_wait()?.is_some() || started.elapsed() > START_TIMEOUT {
                let log = fs::read_to_string(self.directory.join("engine.log"))?;
                return Err(format!("the engine did not start on port {}:\n{log}", self.port).into());
            }
            thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        // Closing its standard input ends the engine and its functions: see engine/launch.py.
        drop(self.child.stdin.take());
        let started = Instant::now();
        while matches!(self.child.try_wait(), Ok(None)) {
            if started.elapsed() > STOP_TIMEOUT {
                let _ = self.child.kill();
            }
            thread::sleep(Duration::from_millis(10));
        }
        let _ = fs::remove_dir_all(&self.directory);
    }
}

/// `http://127.0.0.1:<port>`
pub fn endpoint(port: u16) -> String {
    format!("http://127.0.0.1:{port}")
}

/// A free port of 127.0.0.1, opened. Who connects waits for the engine.
pub fn listen() -> Result<TcpListener> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?)
}

fn is_ready(port: u16) -> bool {
    let ask = || -> std::io::Result<String> {
        let mut connection = TcpStream::connect((Ipv4Addr::LOCALHOST, port))?;
        connection.set_read_timeout(Some(START_TIMEOUT))?;
        connection.write_all(b"GET /_ministack/ready HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")?;
        let mut answer = String::new();
        connection.read_to_string(&mut answer)?;
        Ok(answer)
    };
    ask().is_ok_and(|answer| answer.starts_with("HTTP/1.1 200"))
}
