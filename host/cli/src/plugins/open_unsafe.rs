//! Opening a plugin library. All unsafe code of this crate is here, and only the child process calls it.

use std::path::Path;

use abi_stable::library::{AbiHeaderRef, LibHeader, LibraryError, ROOT_MODULE_LOADER_NAME_WITH_NUL};
use abi_stable::std_types::RSlice;
use fwp_sdk::border::{self, PluginRef, SDK_VERSION};
use libloading::os::unix::{Library, RTLD_LOCAL, RTLD_NOW};

use super::Refusal;

/// An open plugin library. It is never closed: what it handed out lives as long as the process.
pub struct Plugin {
    module: PluginRef,
}

impl Plugin {
    /// Opens an examined library by its canonical path and checks, in this order: that it is a plugin, the version of
    /// abi_stable, the version of the border, and the layout of what it exports.
    ///
    /// `RootModule::load_from_file` must never be used here: it gives the first library of the process for every later path.
    pub fn open(path: &Path) -> Result<Plugin, Refusal> {
        let header = header(path)?;
        border_version(header)?;
        let module = header.init_root_module::<PluginRef>().map_err(|e| refused(&e))?;
        Ok(Plugin { module })
    }

    /// The version of the SDK that the plugin was built with.
    pub fn sdk_version(&self) -> String {
        self.module.sdk_version()().to_string()
    }

    /// The parts, as JSON.
    pub fn list(&self) -> Result<Vec<u8>, String> {
        self.module.list()().into_result().map(|b| b.to_vec()).map_err(|e| e.to_string())
    }

    /// The answer to a request.
    pub fn describe(&self, request: &[u8]) -> Result<Vec<u8>, String> {
        self.module.describe()(RSlice::from_slice(request)).into_result().map(|b| b.to_vec()).map_err(|e| e.to_string())
    }
}

fn header(path: &Path) -> Result<&'static LibHeader, Refusal> {
    // SAFETY: opening runs the constructors of the library with the rights of this process; the user chose to trust what lies
    // on the plugin path. This process is the child that was started for nothing else, so whatever a constructor breaks is
    // broken here only. The file was examined, so the loader does not fault on it.
    let library = unsafe { Library::open(Some(path), RTLD_NOW | RTLD_LOCAL) }.map_err(|e| loader(&e))?;
    // SAFETY: abi_stable defines what this name is the address of: a header, whose first field has the same layout in every
    // version of abi_stable and says which one it is. `AbiHeaderRef` is one non-null pointer and dereferencing the symbol
    // gives the address itself.
    let found = unsafe { library.get::<AbiHeaderRef>(ROOT_MODULE_LOADER_NAME_WITH_NUL) };
    let header: AbiHeaderRef = *found.map_err(|e| {
        Refusal::new(
            "it is a library, but no plugin of fwp-host: it exports nothing that the host looks for",
            "end the crate with fwp_sdk::export! and build it with crate-type = [\"cdylib\"]; move other libraries elsewhere",
        )
        .detail(source(&e))
    })?;
    // Never closed: everything below lives as long as the process.
    std::mem::forget(library);
    if !header.is_valid() {
        return Err(Refusal::new(
            format!(
                "it was built with abi_stable {}.{}, this host uses {}.{}",
                header.abi_major,
                header.abi_minor,
                abi_stable::library::AbiHeader::VALUE.abi_major,
                abi_stable::library::AbiHeader::VALUE.abi_minor
            ),
            format!("rebuild the plugin against fwp-sdk {SDK_VERSION}"),
        ));
    }
    header.upgrade().map_err(|e| refused(&e))
}

/// Refuses a library of another border; in 0.y the y has to agree, later the major version.
fn border_version(header: &LibHeader) -> Result<(), Refusal> {
    let found = header.version_strings().version.as_str();
    if compatible(found, border::VERSION) {
        return Ok(());
    }
    Err(Refusal::new(
        format!(
            "it was built for version {found} of the border between plugins and host, this host has version {}",
            border::VERSION
        ),
        format!("rebuild the plugin against fwp-sdk {SDK_VERSION}, or use the fwp-host of the SDK that it was built with"),
    ))
}

/// Whether a library of border `found` and a host of border `ours` understand each other.
fn compatible(found: &str, ours: &str) -> bool {
    let parts = |version: &str| -> Option<(u64, u64)> {
        let mut numbers = version.split('.').map(|n| n.parse().ok());
        Some((numbers.next()??, numbers.next()??))
    };
    match (parts(found), parts(ours)) {
        (Some((0, found)), Some((0, ours))) => found == ours,
        (Some((found, _)), Some((ours, _))) => found == ours,
        _ => false,
    }
}

/// What the loader says; the error itself only says that it failed.
fn source(e: &libloading::Error) -> String {
    std::error::Error::source(e).map_or_else(|| e.to_string(), ToString::to_string)
}

fn loader(e: &libloading::Error) -> Refusal {
    let said = source(e);
    let remedy = if said.contains("undefined symbol") {
        "the plugin needs a function that nobody provides: link what it uses into it, or rebuild it"
    } else if said.contains("Operation not permitted") || said.contains("failed to map") {
        "the file system may be mounted without the right to execute, or memory is short: move the plugin elsewhere"
    } else if said.contains("cannot open shared object file") {
        "the plugin needs another library that is not there: install it, or link it into the plugin"
    } else {
        "rebuild the plugin on this machine"
    };
    Refusal::new(format!("the system's loader refuses it: {said}"), remedy)
}

/// The errors of abi_stable are hundreds of lines long: one line here, the rest for `-v`.
fn refused(e: &LibraryError) -> Refusal {
    let cause = match e {
        LibraryError::AbiInstability(_) => "what it exports is laid out differently from what this host expects".to_string(),
        LibraryError::InvalidCAbi { .. } => "it passes values of C differently from this host".to_string(),
        LibraryError::RootModule { .. } => "its own loading function failed".to_string(),
        _ => "abi_stable refuses it".to_string(),
    };
    Refusal::new(cause, format!("rebuild the plugin against fwp-sdk {SDK_VERSION}, with the compiler of this host"))
        .detail(e.to_string().trim().to_string())
}

#[cfg(test)]
mod tests {
    use super::compatible;

    #[test]
    fn versions_below_one_must_agree_in_the_second_number() {
        for (found, ours, want) in [
            ("0.1.0", "0.1.9", true),
            ("0.1.0", "0.2.0", false),
            ("0.2.0", "0.1.0", false),
            ("1.0.0", "1.7.0", true),
            ("1.9.0", "1.0.0", true),
            ("2.0.0", "1.0.0", false),
            ("0.1.0", "1.1.0", false),
            ("x", "0.1.0", false),
        ] {
            assert_eq!(compatible(found, ours), want, "{found} {ours}");
        }
    }
}
