//! A plugin library for border 0.1, written down when that was frozen. Never changed: it stands for the libraries that people have built.

#![allow(non_local_definitions)]

use abi_stable::StableAbi;
use abi_stable::library::{CheckTypeLayout, LibHeader, RootModule, RootModuleResult};
use abi_stable::prefix_type::PrefixTypeTrait;
use abi_stable::sabi_types::VersionStrings;
use abi_stable::std_types::{RResult, RSlice, RStr, RString, RVec};

#[repr(C)]
#[derive(StableAbi)]
#[sabi(kind(Prefix(prefix_ref = PluginRef)))]
#[sabi(missing_field(option))]
pub struct Plugin {
    pub sdk_version: extern "C" fn() -> RStr<'static>,
    pub list: extern "C" fn() -> RResult<RVec<u8>, RString>,
    #[sabi(last_prefix_field)]
    pub describe: extern "C" fn(RSlice<'_, u8>) -> RResult<RVec<u8>, RString>,
}

impl RootModule for PluginRef {
    abi_stable::declare_root_module_statics! {PluginRef}
    const BASE_NAME: &'static str = "fwp_plugin";
    const NAME: &'static str = "fwp_plugin";
    const VERSION_STRINGS: VersionStrings = VersionStrings::new(env!("CARGO_PKG_VERSION"));
}

extern "C" fn sdk_version() -> RStr<'static> {
    "0.1.0".into()
}

extern "C" fn list() -> RResult<RVec<u8>, RString> {
    RResult::ROk(include_bytes!("parts.json").to_vec().into())
}

extern "C" fn describe(_: RSlice<'_, u8>) -> RResult<RVec<u8>, RString> {
    RResult::ROk(include_bytes!("program.fwp").to_vec().into())
}

extern "C" fn erased() -> RootModuleResult {
    abi_stable::library::__call_root_module_loader(|| Plugin { sdk_version, list, describe }.leak_into_prefix())
}

#[unsafe(export_name = "_1as_0lib_1header_0root_bmodule_bloader")]
pub static HEADER: LibHeader = unsafe { LibHeader::from_constructor::<PluginRef>(erased, CheckTypeLayout::Yes) };
