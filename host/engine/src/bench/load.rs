//! How busy others keep the machine.

use std::time::Instant;

/// Ticks a second in `/proc`, fixed for all programs on Linux.
const TICKS: f64 = 100.0;

/// Processor time of others, from its creation on.
pub struct Others {
    start: Instant,
    busy: Option<f64>,
}

impl Others {
    /// Begins to watch.
    #[allow(clippy::new_without_default)] // it takes the time
    pub fn new() -> Others {
        Others { start: Instant::now(), busy: busy_of_others() }
    }

    /// Mean number of processors that other processes kept busy since then; 0 where the system does not say.
    pub fn busy(&self) -> f64 {
        match (self.busy, busy_of_others()) {
            (Some(before), Some(now)) => ((now - before) / self.start.elapsed().as_secs_f64()).max(0.0),
            _ => 0.0,
        }
    }
}

/// Processor seconds of the whole machine less those of this process and its ended children.
fn busy_of_others() -> Option<f64> {
    let all = all_busy(&std::fs::read_to_string("/proc/stat").ok()?)?;
    let own = own_busy(&std::fs::read_to_string("/proc/self/stat").ok()?)?;
    Some((all - own) as f64 / TICKS)
}

/// Ticks of work, interrupts and time taken by the hypervisor, from the first line of `/proc/stat`.
fn all_busy(stat: &str) -> Option<u64> {
    let numbers: Option<Vec<u64>> = stat.lines().next()?.split_whitespace().skip(1).map(|n| n.parse().ok()).collect();
    let numbers = numbers?;
    // user, nice, system, idle, waiting for disks, interrupts, soft interrupts, stolen
    [0, 1, 2, 5, 6, 7].iter().map(|i| numbers.get(*i).copied()).sum()
}

/// Ticks of a process and of children that it has waited for, from `/proc/PID/stat`.
fn own_busy(stat: &str) -> Option<u64> {
    // The name may hold anything, and ends with the last parenthesis.
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    fields.get(11..15)?.iter().map(|n| n.parse::<u64>().ok()).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read() {
        assert_eq!(all_busy("cpu  100 2 30 4000 50 6 7 8 9 10\ncpu0 1 2 3"), Some(100 + 2 + 30 + 6 + 7 + 8));
        let stat = "12 (a) b) S 1 1 1 0 -1 4194560 1 2 3 4 11 22 33 44 20 0 5 0";
        assert_eq!(own_busy(stat), Some(11 + 22 + 33 + 44));
        assert_eq!(all_busy(""), None);
        assert_eq!(own_busy("nothing"), None);
    }

    #[test]
    fn own_work_is_counted_as_such() {
        let own = || own_busy(&std::fs::read_to_string("/proc/self/stat").unwrap()).unwrap();
        let before = own();
        let mut x = 1.0f64;
        // Ends however busy the machine is: the time of this process goes on as long as it works.
        while own() < before + 3 {
            x = std::hint::black_box(x * 1.000_001);
        }
        assert!(Others::new().busy() >= 0.0);
    }
}
