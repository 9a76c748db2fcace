//! Rust closures on libtorch's own threads.

use std::ffi::{c_char, c_void};
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};

use super::ShimError;
use super::ffi::{self, c_text, panic_text};

/// Runs `body` over `0..units` in pieces of at least `grain` units, on the threads that libtorch
/// uses for its own operations, and waits for all of them.
///
/// Which thread gets which piece depends on the number of threads: a result that must not depend
/// on it is computed for each unit alone.
///
/// # Errors
///
/// The first error or panic of `body`; the other pieces are still run.
pub fn parallel_for<F>(units: usize, grain: usize, body: F) -> Result<(), ShimError>
where
    F: Fn(Range<usize>) -> anyhow::Result<()> + Sync,
{
    let count = i64::try_from(units).map_err(|_| ShimError::Argument(format!("{units} units are too many")))?;
    let grain = i64::try_from(grain).unwrap_or(i64::MAX).max(1);
    // SAFETY: the call waits for all pieces, so the borrow of `body` outlives every use of it;
    // `F: Sync` allows the shared use from several threads; `run::<F>` fits its type.
    let error = unsafe {
        let closure = std::ptr::from_ref(&body).cast_mut().cast::<c_void>();
        ffi::fwp_parallel_for(count, grain, closure, run::<F>)
    };
    // SAFETY: `error` comes from the shim and is used nowhere else.
    unsafe { ffi::check(error) }
}

/// Runs one piece. Never unwinds.
unsafe extern "C" fn run<F>(closure: *mut c_void, begin: i64, end: i64) -> *mut c_char
where
    F: Fn(Range<usize>) -> anyhow::Result<()> + Sync,
{
    // SAFETY: `parallel_for` passes a pointer to an `F` that lives until all pieces have ended.
    let body = unsafe { &*closure.cast::<F>() };
    match catch_unwind(AssertUnwindSafe(|| body(begin as usize..end as usize))) {
        Ok(Ok(())) => std::ptr::null_mut(),
        Ok(Err(error)) => c_text(&format!("{error:#}")),
        Err(payload) => {
            let text = panic_text(&*payload);
            std::mem::forget(payload);
            c_text(&format!("panic in a parallel loop: {text}"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;
    use std::sync::Mutex;
    use std::sync::atomic::{AtomicU32, Ordering};
    use std::time::Duration;

    #[test]
    fn every_unit_runs_once_and_on_more_than_one_thread() {
        let runs: Vec<AtomicU32> = (0..37).map(|_| AtomicU32::new(0)).collect();
        let threads = Mutex::new(HashSet::new());
        parallel_for(37, 1, |range| {
            threads.lock().unwrap().insert(std::thread::current().id());
            std::thread::sleep(Duration::from_millis(5));
            for unit in range {
                runs[unit].fetch_add(1, Ordering::SeqCst);
            }
            Ok(())
        })
        .unwrap();
        assert!(runs.iter().all(|count| count.load(Ordering::SeqCst) == 1));
        if super::super::get_num_threads() > 1 {
            assert!(threads.lock().unwrap().len() > 1, "the shim was built without OpenMP");
        }
    }

    #[test]
    fn nothing_to_do_is_fine() {
        parallel_for(0, 1, |_| anyhow::bail!("must not run")).unwrap();
    }

    #[test]
    fn errors_and_panics_come_back() {
        let error = parallel_for(4, 1, |range| {
            anyhow::ensure!(range.start != 0, "unit {} failed", range.start);
            Ok(())
        });
        assert!(error.unwrap_err().to_string().contains("unit 0 failed"));
        let error = parallel_for(4, 1, |_| panic!("kernel bug"));
        assert!(error.unwrap_err().to_string().contains("panic in a parallel loop: kernel bug"));
    }
}
