//! What a plugin library exports: three functions that exchange bytes.
//!
//! A crate of its own because of its version. Libraries say which border they were built for, and abi_stable writes name and version of
//! this package into the layout that it compares; so a new version of the SDK does not turn away what was built with an older one.
//! A function that is added behind the last one is a new third number, and a host calls it only where it is there.
//! Anything else is a new second number, and every plugin has to be built again.

// The derive macro of abi_stable 0.11 puts impls inside of functions.
#![allow(non_local_definitions)]

use abi_stable::StableAbi;
use abi_stable::library::RootModule;
use abi_stable::sabi_types::VersionStrings;
use abi_stable::std_types::{RResult, RSlice, RStr, RString, RVec};

/// The version of the border.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// The root module of a plugin library.
#[repr(C)]
#[derive(StableAbi)]
#[sabi(kind(Prefix(prefix_ref = PluginRef)))]
#[sabi(missing_field(option))]
pub struct Plugin {
    /// Version of the SDK that the plugin was built with.
    pub sdk_version: extern "C" fn() -> RStr<'static>,
    /// The parts of the library: JSON, a list of `fwp_sdk::PartInfo`.
    pub list: extern "C" fn() -> RResult<RVec<u8>, RString>,
    /// Answers an `fwp_sdk::Request` in JSON with a program's bytes or JSON, as the question says.
    #[sabi(last_prefix_field)]
    pub describe: extern "C" fn(RSlice<'_, u8>) -> RResult<RVec<u8>, RString>,
}

impl RootModule for PluginRef {
    abi_stable::declare_root_module_statics! {PluginRef}
    const BASE_NAME: &'static str = "fwp_plugin";
    const NAME: &'static str = "fwp_plugin";
    const VERSION_STRINGS: VersionStrings = VersionStrings::new(VERSION);
}
