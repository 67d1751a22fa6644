//! The guest's own counters: what Linux says that it did, for comparison with what the hypervisor
//! saw.

use anyhow::{Context, Result, ensure};

/// Counters shown, each the sum of all lines of `/proc/vmstat` whose name starts so (`pgalloc` has
/// a line per zone).
const SHOWN: &[&str] = &["pgfault", "pgmajfault", "pgalloc_", "pgfree"];

/// Prints the counters as `vmstat: NAME N`.
pub fn print() -> Result<()> {
    let text = std::fs::read_to_string("/proc/vmstat").context("/proc/vmstat")?;
    for name in SHOWN {
        println!("vmstat: {} {}", name.trim_end_matches('_'), sum(&text, name)?);
    }
    Ok(())
}

fn sum(text: &str, name: &str) -> Result<u64> {
    let wanted = |key: &str| if name.ends_with('_') { key.starts_with(name) } else { key == name };
    let mut found = false;
    let mut sum = 0;
    for (key, value) in
        text.lines().filter_map(|line| line.split_once(' ')).filter(|(key, _)| wanted(key))
    {
        sum += value.parse::<u64>().with_context(|| format!("/proc/vmstat: {key} {value}"))?;
        found = true;
    }
    ensure!(found, "/proc/vmstat has no {name}");
    Ok(sum)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "nr_free_pages 12\npgalloc_dma 1\npgalloc_dma32 20\npgalloc_normal 300\npgfree 9\npgfault 7\npgmajfault 2\n";

    #[test]
    fn zones_are_summed_and_names_are_whole() {
        assert_eq!(sum(TEXT, "pgalloc_").unwrap(), 321);
        assert_eq!(sum(TEXT, "pgfault").unwrap(), 7);
        assert!(sum(TEXT, "pgsteal").is_err());
    }
}
