//! Where files and programs are, found when they are asked for: a path that is compiled in is still that of another
//! checkout when Cargo takes what it built there for fresh, and when a checkout was moved or copied.

use std::{
    env,
    path::{Path, PathBuf},
    sync::OnceLock,
};

/// The root of the checkout that this program was built in, or is run in.
///
/// # Panics
/// If it was built in one checkout and Cargo runs it in another: neither's files would be right.
pub fn checkout() -> &'static Path {
    static CHECKOUT: OnceLock<PathBuf> = OnceLock::new();
    CHECKOUT.get_or_init(|| {
        let built_in = env::current_exe().ok().and_then(|program| root_above(&program));
        let run_in = env::var_os("CARGO_MANIFEST_DIR").and_then(|package| root_above(Path::new(&package)));
        if let (Some(built_in), Some(run_in)) = (&built_in, &run_in) {
            assert!(
                built_in == run_in,
                "this program was built in {} and is run in {}: give each checkout a target directory of its own",
                built_in.display(),
                run_in.display()
            );
        }
        built_in
            .or(run_in)
            // The target directory is elsewhere, and Cargo does not say: `make` runs programs from the root.
            .or_else(|| env::current_dir().ok().and_then(|directory| root_above(&directory)))
            .unwrap_or_else(|| PathBuf::from("."))
    })
}

fn root_above(place: &Path) -> Option<PathBuf> {
    let place = place.canonicalize().unwrap_or_else(|_| place.to_owned());
    let is_root =
        |directory: &&Path| directory.join("template.yaml").is_file() && directory.join("statemachine").is_dir();
    place.ancestors().find(is_root).map(Path::to_owned)
}

/// A program of the workspace, as it was built with this one.
pub fn built(name: &str) -> Option<PathBuf> {
    let beside_this = env::current_exe().ok()?;
    // A test is in a folder below the programs', unless Cargo has a build directory of its own (build.build-dir):
    // then only the programs are in the target directory, and Cargo tells a test where.
    let beside_cargos = env::var_os("CARGO_BIN_EXE_demo").map(PathBuf::from);
    beside_this
        .ancestors()
        .skip(1)
        .take(2)
        .chain(beside_cargos.as_deref().and_then(Path::parent))
        .map(|directory| directory.join(name))
        .find(|path| path.is_file())
}
