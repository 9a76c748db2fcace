//! The border between a plugin library and the host: three functions that exchange bytes.
//!
//! No tensor, callback or allocator crosses it.
//! Every function is `[any thread, not concurrent]` and catches every unwinding inside the plugin: a panic becomes an error with its text.
//! A library is never unloaded.

use std::any::Any;
use std::cell::RefCell;
use std::panic::{self, AssertUnwindSafe};

use abi_stable::std_types::{RResult, RSlice, RString, RVec};
pub use fwp_border::{Plugin, PluginRef, VERSION};

use crate::build::Mistake;
use crate::part::{Part, PartInfo, Request};

/// Version of this SDK.
pub const SDK_VERSION: &str = env!("CARGO_PKG_VERSION");

thread_local! {
    /// Where the last panic of this thread happened; the payload that is caught does not say.
    static PANIC_PLACE: RefCell<String> = const { RefCell::new(String::new()) };
}

/// Runs the plugin's code; whatever it does but abort becomes an answer.
fn guarded(work: impl FnOnce() -> Result<Vec<u8>, String>) -> RResult<RVec<u8>, RString> {
    // The default hook prints a backtrace on stderr; the host prints the message instead.
    let old = panic::take_hook();
    panic::set_hook(Box::new(|info| {
        let place = info.location().map(|l| format!("{}:{}:{}", l.file(), l.line(), l.column()));
        // A panic while the thread ends finds no place to write to, and a panic in a panic hook would abort.
        let _ = PANIC_PLACE.try_with(|p| p.replace(place.unwrap_or_default()));
    }));
    PANIC_PLACE.with(|p| p.take());
    let result = panic::catch_unwind(AssertUnwindSafe(work));
    panic::set_hook(old);
    match result {
        Ok(Ok(bytes)) => RResult::ROk(bytes.into()),
        Ok(Err(message)) => RResult::RErr(message.into()),
        Err(payload) => {
            let message = explain(&*payload);
            // A payload may panic again when it is dropped; leaking it is the only safe end.
            std::mem::forget(payload);
            RResult::RErr(message.into())
        }
    }
}

fn explain(payload: &(dyn Any + Send)) -> String {
    if let Some(mistake) = payload.downcast_ref::<Mistake>() {
        return format!("{}: {}", mistake.place, mistake.message);
    }
    let text = payload.downcast_ref::<&str>().map(|s| s.to_string()).or_else(|| payload.downcast_ref::<String>().cloned());
    // A panic that was caught and resumed passes no hook a second time.
    let place = PANIC_PLACE.with(|p| p.take());
    let place = if place.is_empty() { place } else { format!(" at {place}") };
    format!("the plugin panicked{place}: {}", text.unwrap_or_else(|| "with a value that is not text".into()))
}

/// Lists the parts of a library. Called by [`export!`](crate::export!).
#[doc(hidden)]
pub fn list(parts: &[Part]) -> RResult<RVec<u8>, RString> {
    guarded(|| {
        let infos: Vec<PartInfo> = parts.iter().map(Part::info).collect();
        serde_json::to_vec(&infos).map_err(|e| e.to_string())
    })
}

/// Answers a request. Called by [`export!`](crate::export!).
#[doc(hidden)]
pub fn describe(parts: &[Part], request: RSlice<'_, u8>) -> RResult<RVec<u8>, RString> {
    guarded(|| {
        let request: Request =
            serde_json::from_slice(request.as_slice()).map_err(|e| format!("the host's request cannot be read: {e}"))?;
        let part = parts.iter().find(|p| {
            let info = p.info();
            info.kind == request.kind && info.name == request.name
        });
        match part {
            Some(part) => part.describe(&request),
            None => Err(format!("this library has no {} `{}`", request.kind, request.name)),
        }
    })
}

/// Exports the parts of a plugin library.
///
/// ```ignore
/// fwp_sdk::export! { update_rules: [Delta], feature_maps: [], slow_nets: [] }
/// ```
#[macro_export]
macro_rules! export {
    ($( $kind:ident : [ $( $part:ty ),* $(,)? ] ),* $(,)?) => {
        const _: () = {
            static PARTS: &[$crate::Part] = &[ $( $( $crate::export!(@part $kind $part) ),* ),* ];

            extern "C" fn sdk_version() -> $crate::abi_stable::std_types::RStr<'static> {
                $crate::border::SDK_VERSION.into()
            }
            extern "C" fn list() -> $crate::abi_stable::std_types::RResult<$crate::abi_stable::std_types::RVec<u8>, $crate::abi_stable::std_types::RString> {
                $crate::border::list(PARTS)
            }
            extern "C" fn describe(
                request: $crate::abi_stable::std_types::RSlice<'_, u8>,
            ) -> $crate::abi_stable::std_types::RResult<$crate::abi_stable::std_types::RVec<u8>, $crate::abi_stable::std_types::RString> {
                $crate::border::describe(PARTS, request)
            }
            fn root() -> $crate::border::PluginRef {
                use $crate::abi_stable::prefix_type::PrefixTypeTrait as _;
                $crate::border::Plugin { sdk_version, list, describe }.leak_into_prefix()
            }
            extern "C" fn erased() -> $crate::abi_stable::library::RootModuleResult {
                $crate::abi_stable::library::__call_root_module_loader(root)
            }

            // SAFETY: the name is abi_stable's own for its loader (tested against the crate), so nothing else defines it;
            // `erased` returns the module that the type parameter names.
            #[unsafe(export_name = "_1as_0lib_1header_0root_bmodule_bloader")]
            pub static HEADER: $crate::abi_stable::library::LibHeader = unsafe {
                $crate::abi_stable::library::LibHeader::from_constructor::<$crate::border::PluginRef>(
                    erased,
                    $crate::abi_stable::library::CheckTypeLayout::Yes,
                )
            };
        };
    };
    (@part update_rules $part:ty) => { $crate::Part::update_rule::<$part>() };
    (@part feature_maps $part:ty) => { $crate::Part::feature_map::<$part>() };
    (@part slow_nets $part:ty) => { $crate::Part::slow_net::<$part>() };
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_exported_name_is_the_one_abi_stable_looks_for() {
        assert_eq!(abi_stable::library::ROOT_MODULE_LOADER_NAME, "_1as_0lib_1header_0root_bmodule_bloader");
    }
}
