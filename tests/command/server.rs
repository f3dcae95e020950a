//! Starts the real binary with a home of its own, and stops it.

use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

/// A person's machine: an empty home folder that nothing else touches.
pub struct Home {
    folder: tempfile::TempDir,
}

impl Home {
    pub fn new() -> Self {
        Self { folder: tempfile::tempdir().expect("a temporary folder") }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// The binary with this home and none of the caller's settings.
    pub fn myriad(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_myriad"));
        command.env_clear().env("HOME", self.folder.path()).env("HF_HUB_OFFLINE", "1").args(arguments);
        command.stdin(Stdio::null());
        command
    }

    /// Runs the binary to its end.
    pub fn run(&self, arguments: &[&str]) -> Output {
        self.myriad(arguments).output().expect("the binary runs")
    }

    /// Runs it, expects it to fail, and gives what it said.
    pub fn refused(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        assert!(!output.status.success(), "{arguments:?} was accepted");
        String::from_utf8_lossy(&output.stderr).into_owned()
    }

    /// Runs it, expects it to succeed, and gives what it printed.
    pub fn printed(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{arguments:?} failed: {stderr}");
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// Starts a server on free ports and waits until it says that it is ready.
    pub fn serve(&self, arguments: &[&str]) -> Server {
        let mut all = vec!["serve", "--listen", "127.0.0.1:0", "--ops-listen", "127.0.0.1:0"];
        all.extend(arguments);
        self.serve_with(self.myriad(&all))
    }

    /// The same with a command of one's own.
    pub fn serve_with(&self, mut command: Command) -> Server {
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("the binary starts");
        let mut lines = BufReader::new(child.stdout.take().expect("its standard output is ours"));
        let mut screen = String::new();
        while !screen.contains("Next:") {
            let mut line = String::new();
            if lines.read_line(&mut line).expect("its standard output is text") == 0 {
                let mut error = String::new();
                let _ = child.stderr.take().map(|mut stderr| stderr.read_to_string(&mut error));
                panic!("the server ended before it was ready: {screen}{error}");
            }
            screen.push_str(&line);
        }
        let url =
            screen.split_whitespace().find_map(|word| word.strip_suffix("/v1")).expect("the screen has the address");
        Server { child, url: url.to_owned(), screen, _lines: lines }
    }
}

/// A running server; killed when dropped.
pub struct Server {
    child: Child,
    pub url: String,
    pub screen: String,
    // Held open: a server whose standard output is closed would be told so.
    _lines: BufReader<std::process::ChildStdout>,
}

impl Server {
    pub fn port(&self) -> &str {
        self.url.rsplit(':').next().unwrap_or_default()
    }

    /// Stops it, and gives what it said on standard error.
    pub fn said(&mut self) -> String {
        self.terminate();
        let mut said = String::new();
        let stderr = self.child.stderr.as_mut().expect("its standard error is ours");
        stderr.read_to_string(&mut said).expect("its standard error is text");
        self.child.wait().expect("the server ends");
        said
    }

    /// SIGTERM, then the exit status.
    pub fn stop(mut self) -> std::process::ExitStatus {
        self.terminate();
        self.child.wait().expect("the server ends")
    }

    fn terminate(&self) {
        let pid = self.child.id().to_string();
        let sent = Command::new("kill").args(["-TERM", &pid]).status().expect("kill runs");
        assert!(sent.success());
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The built-in adapters' folders in this repository.
pub fn adapter(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("models/myriad-mini/adapters").join(name)
}
