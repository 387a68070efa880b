//! What runs is what is checked out, however many checkouts there are on a machine.
//!
//! The checkouts here are tiny: this one's Makefile, `.ci/run` and [`checkout`], and a workspace of two programs that
//! say whose they are. All are written before anything is built: what Cargo builds in one is then newer than the files
//! of every other.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test ends where it cannot go on")]

use std::{
    env, fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Command, Output},
};

use ami_share_tests::checkout::checkout;

/// A folder with checkouts beside one cache, removed at the end.
struct Machine(PathBuf);

impl Machine {
    fn with(test: &str, checkouts: &[&str]) -> Self {
        let machine = Self(env::temp_dir().join(format!("ami-share-{test}-{}", std::process::id())));
        let vendored = machine.0.join("crates/third-party");
        write(&vendored.join("Cargo.toml"), "package = { name = 'third-party', version = '1.0.0', edition = '2024' }");
        write(&vendored.join("src/lib.rs"), "");
        let checksum = "0".repeat(64);
        write(&vendored.join(".cargo-checksum.json"), &format!(r#"{{ "files": {{}}, "package": "{checksum}" }}"#));
        for name in checkouts {
            machine.check_out(name);
        }
        machine
    }

    fn check_out(&self, name: &str) {
        let root = self.0.join(name);
        for file in [
            "Makefile",
            ".ci/run",
            "rust-toolchain.toml",
            "tests/requirements.txt",
            "tests/requirements-checkov.txt",
            "tests/src/checkout.rs",
        ] {
            fs::create_dir_all(root.join(file).parent().unwrap()).unwrap();
            fs::copy(checkout().join(file), root.join(file)).unwrap();
        }
        write(&root.join("Cargo.toml"), "workspace = { members = ['tests'], resolver = '3' }");
        write(
            &root.join("tests/Cargo.toml"),
            "package = { name = 'tests', version = '0.1.0', edition = '2024' }\ndependencies = { third-party = '1' }",
        );
        write(
            &root.join(".cargo/config.toml"),
            &format!(
                "source.crates-io.replace-with = 'here'\nsource.here.directory = '{}'",
                self.0.join("crates").display()
            ),
        );
        let demo = r#"
            #[path = "../checkout.rs"]
            mod checkout;
            use std::{fs, process::Command};

            fn main() {
                let read = |path| fs::read_to_string(checkout::checkout().join(path)).unwrap();
                let step = Command::new(checkout::built("step").unwrap()).output().unwrap();
                println!("demo of NAME, {}, {}, {}",
                    read("template.yaml"), read("statemachine/machine.json"), String::from_utf8(step.stdout).unwrap());
            }
        "#;
        write(&root.join("tests/src/bin/demo.rs"), &demo.replace("NAME", name));
        write(&root.join("tests/src/bin/step.rs"), &format!("fn main() {{ print!(\"step of {name}\") }}"));
        write(&root.join("template.yaml"), &format!("template of {name}"));
        write(&root.join("statemachine/machine.json"), &format!("machine of {name}"));
        said(self.run(name, "cargo").args(["generate-lockfile", "--offline"]).output().unwrap());
    }

    /// A command in a checkout, as a user of this machine gives it.
    fn run(&self, name: &str, program: &str) -> Command {
        let mut command = Command::new(program);
        command.current_dir(self.0.join(name)).env("XDG_CACHE_HOME", self.0.join("cache"));
        // Cargo and make have told this test of this checkout.
        for (variable, _) in env::vars_os() {
            let variable_name = variable.to_string_lossy();
            if variable_name.starts_with("CARGO") && variable_name != "CARGO_HOME" || variable_name.starts_with("MAKE")
            {
                command.env_remove(&variable);
            }
        }
        command
    }

    fn demo(&self, name: &str) -> Command {
        let mut command = self.run(name, "make");
        // Without the tools, which would be downloaded.
        command.args(["demo", "--assume-old=setup"]);
        command
    }

    /// `.ci/run`, with a `make test` that is the demo.
    fn ci(&self, name: &str) -> String {
        let test = "test:\n\tcargo build --locked --workspace --bins\n\ttarget/debug/demo\n";
        write(&self.0.join(name).join("GNUmakefile"), test);
        said(self.run(name, "./.ci/run").output().unwrap())
    }

    /// The archive that CI has kept.
    fn kept(&self) -> PathBuf {
        let mut files: Vec<PathBuf> =
            fs::read_dir(self.0.join("cache/ami-share")).unwrap().map(|entry| entry.unwrap().path()).collect();
        assert_eq!(files.len(), 1, "{files:?}");
        files.remove(0)
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn write(path: &Path, text: &str) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, text).unwrap();
}

fn said(output: Output) -> String {
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8(said).unwrap();
    assert!(output.status.success(), "{said}");
    said
}

fn is_all_of(name: &str, said: &str) {
    let all = format!("demo of {name}, template of {name}, machine of {name}, step of {name}\n");
    assert!(said.contains(&all), "{all}{said}");
}

#[test]
fn two_checkouts_run_each_its_own() {
    let machine = Machine::with("two", &["one", "two"]);
    for name in ["one", "two", "one"] {
        is_all_of(name, &said(machine.demo(name).output().unwrap()));
    }
}

#[test]
fn two_checkouts_run_each_its_own_where_the_target_directory_is_shared() {
    let machine = Machine::with("shared", &["one", "two"]);
    for name in ["one", "two", "one"] {
        is_all_of(name, &said(machine.demo(name).env("CARGO_TARGET_DIR", machine.0.join("shared")).output().unwrap()));
    }
}

#[test]
fn two_checkouts_run_each_its_own_where_cargo_is_configured_to_share_the_build_directory() {
    let machine = Machine::with("configured", &["one", "two"]);
    for name in ["one", "two", "one"] {
        let shared = machine.0.join("shared");
        is_all_of(name, &said(machine.demo(name).env("CARGO_BUILD_BUILD_DIR", shared).output().unwrap()));
    }
}

#[test]
fn a_checkout_that_was_moved_reads_its_own_files() {
    let machine = Machine::with("moved", &["one"]);
    said(machine.demo("one").output().unwrap());
    fs::rename(machine.0.join("one"), machine.0.join("moved")).unwrap();
    machine.check_out("one");
    write(&machine.0.join("moved/template.yaml"), "template that was moved");
    let said = said(machine.run("one", "../moved/target/debug/demo").output().unwrap());
    assert!(said.contains("template that was moved"), "{said}");
}

#[test]
fn a_program_of_another_checkout_is_refused_by_cargo_run() {
    let machine = Machine::with("refused", &["one", "two"]);
    said(machine.demo("one").output().unwrap());
    let mut run = machine.run("two", "cargo");
    run.args(["run", "--locked", "--bin", "demo"]).env("CARGO_TARGET_DIR", machine.0.join("one/target"));
    let output = run.output().unwrap();
    let error = String::from_utf8(output.stderr).unwrap();
    assert!(!output.status.success(), "{error}");
    assert!(error.contains("give each checkout a target directory of its own"), "{error}");
}

#[test]
fn two_that_set_up_at_once_make_the_tools_once() {
    let machine = Machine::with("setup", &["one", "two"]);
    let python = machine.0.join("python");
    write(
        &python,
        "#!/bin/sh\n[ \"$*\" = \"-m venv --clear $4\" ] && mkdir -p $4/bin && echo $4 >>$0.made\n\
         printf '#!/bin/sh\\nsleep 0.3; touch '$4/tool >$4/bin/pip && chmod +x $4/bin/pip\n",
    );
    fs::set_permissions(&python, fs::Permissions::from_mode(0o755)).unwrap();
    let setup = |name| machine.run(name, "make").arg("setup").env("PYTHON", &python).spawn().unwrap();
    for mut setting_up in ["one", "two"].map(setup) {
        assert!(setting_up.wait().unwrap().success());
    }
    assert!(machine.0.join("one/.venv/tool").exists() && machine.0.join("two/.venv/tool").exists());
    assert_eq!(fs::read_to_string(machine.0.join("python.made")).unwrap().lines().count(), 1);

    // What a killed one leaves is not taken for complete.
    let tools = fs::canonicalize(machine.0.join("one/.venv")).unwrap();
    fs::remove_file(tools.join("complete")).unwrap();
    fs::remove_file(tools.join("tool")).unwrap();
    assert!(setup("two").wait().unwrap().success());
    assert!(tools.join("tool").exists());
}

#[test]
fn ci_keeps_third_party_crates_and_nothing_else() {
    let machine = Machine::with("ci", &["first", "second", "third", "fourth", "fifth"]);
    let compiled = "Compiling third-party";
    let said_first = machine.ci("first");
    is_all_of("first", &said_first);
    assert!(said_first.contains(compiled), "{said_first}");

    let kept = machine.kept();
    let files = said(Command::new("tar").arg("-tf").arg(&kept).output().unwrap());
    assert!(files.contains("third_party") && !files.contains("demo") && !files.contains("step"), "{files}");
    let said_second = machine.ci("second");
    is_all_of("second", &said_second);
    assert!(!said_second.contains(compiled), "{said_second}");

    // Half written.
    let bytes = fs::read(&kept).unwrap();
    fs::write(&kept, &bytes[..bytes.len() / 2]).unwrap();
    let said_third = machine.ci("third");
    is_all_of("third", &said_third);
    assert!(said_third.contains(compiled), "{said_third}");
    let kept = machine.kept();
    let said_fourth = machine.ci("fourth");
    assert!(!said_fourth.contains(compiled), "{said_fourth}");

    // Whole, and with the programs of another clone in it.
    fs::remove_file(&kept).unwrap();
    let mut tar = machine.run("first", "tar");
    said(tar.arg("-cf").arg(&kept).args(["--format=posix", "-C", "target", "debug"]).output().unwrap());
    let sum = said(Command::new("sha256sum").arg(&kept).output().unwrap());
    let name = kept.file_name().unwrap().to_str().unwrap();
    let (key, _) = name.rsplit_once('-').unwrap();
    fs::rename(&kept, kept.with_file_name(format!("{key}-{}.tar", &sum[..64]))).unwrap();
    let said_fifth = machine.ci("fifth");
    is_all_of("fifth", &said_fifth);
    assert!(!said_fifth.contains(compiled), "{said_fifth}");
}
