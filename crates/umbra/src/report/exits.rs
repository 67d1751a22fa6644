//! Exits by cause, as far as they are known.

use std::fmt;

use serde::de::{self, MapAccess, Visitor};
use serde::ser::SerializeMap;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use umbra_telemetry::{ExitCause, ExitCounts};

use super::Kvm;

/// An object with every cause, and `total`. Null is what the hypervisor does not tell; Umbra tells
/// all.
#[derive(Clone, Debug, PartialEq)]
pub struct Exits {
    /// By [`ExitCause::ALL`].
    by_cause: Vec<Option<u64>>,
    total: u64,
}

const TOTAL: &str = "total";

/// Whether an exit is the price of memory: faults, but not those of devices, and what the guest
/// does to its TLB and control registers.
pub fn is_memory(cause: ExitCause) -> bool {
    match cause {
        ExitCause::GuestFaultNotPresentUser
        | ExitCause::GuestFaultNotPresentKernel
        | ExitCause::GuestFaultProtectionUser
        | ExitCause::GuestFaultProtectionKernel
        | ExitCause::GuestFaultReserved
        | ExitCause::HostFaultTableWrite
        | ExitCause::HostFaultLink
        | ExitCause::HostFaultInstall
        | ExitCause::HostFaultDirty
        | ExitCause::HostFaultAccessed
        | ExitCause::Invlpg
        | ExitCause::Cr0
        | ExitCause::Cr3Read
        | ExitCause::Cr3Write
        | ExitCause::Cr4 => true,
        ExitCause::HostFaultMmio
        | ExitCause::Cpuid
        | ExitCause::Msr
        | ExitCause::Io
        | ExitCause::Interrupt
        | ExitCause::Hlt
        | ExitCause::Other => false,
    }
}

impl Exits {
    /// Of a hypervisor that tells `total` and these causes.
    pub(super) fn partial(total: u64, known: &[(ExitCause, u64)]) -> Exits {
        let count =
            |cause| known.iter().find(|(known, _)| *known == cause).map(|(_, count)| *count);
        Exits { by_cause: ExitCause::ALL.iter().map(|&cause| count(cause)).collect(), total }
    }

    /// The exits of all causes.
    pub fn total(&self) -> u64 {
        self.total
    }

    /// The exits of one cause, if they are known.
    pub fn get(&self, cause: ExitCause) -> Option<u64> {
        self.by_cause[cause as usize]
    }

    /// Each cause that is known with its count, in the order of precedence.
    pub fn iter(&self) -> impl Iterator<Item = (ExitCause, u64)> + '_ {
        ExitCause::ALL.iter().filter_map(|&cause| Some((cause, self.get(cause)?)))
    }

    /// The sum over the causes that belong to a group, if all of them are known.
    pub fn group(&self, belongs: impl Fn(ExitCause) -> bool) -> Option<u64> {
        let mut counts =
            ExitCause::ALL.iter().filter(|&&cause| belongs(cause)).map(|&cause| self.get(cause));
        counts.try_fold(0, |sum: u64, count| Some(sum.saturating_add(count?)))
    }

    /// The exits for memory: of known causes, or what remains of `kvm`'s counters.
    pub fn memory(&self, kvm: Option<&Kvm>) -> Option<u64> {
        kvm.map_or_else(|| self.group(is_memory), |kvm| kvm.memory_exits())
    }
}

impl From<&ExitCounts> for Exits {
    fn from(counts: &ExitCounts) -> Exits {
        Exits {
            by_cause: counts.iter().map(|(_, count)| Some(count)).collect(),
            total: counts.total(),
        }
    }
}

impl Serialize for Exits {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(ExitCause::ALL.len() + 1))?;
        for &cause in ExitCause::ALL {
            map.serialize_entry(cause.name(), &self.get(cause))?;
        }
        map.serialize_entry(TOTAL, &self.total)?;
        map.end()
    }
}

impl<'de> Deserialize<'de> for Exits {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Exits, D::Error> {
        struct Causes;
        impl<'de> Visitor<'de> for Causes {
            type Value = Exits;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of exit causes and their total")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Exits, A::Error> {
                let mut by_cause = vec![Some(0); ExitCause::ALL.len()];
                let mut total = None;
                while let Some((key, count)) = map.next_entry::<String, Option<u64>>()? {
                    match ExitCause::from_name(&key) {
                        Some(cause) => by_cause[cause as usize] = count,
                        None if key == TOTAL => total = count,
                        None => {
                            return Err(de::Error::custom(format!("unknown exit cause `{key}`")));
                        }
                    }
                }
                let all_known = by_cause.iter().all(Option::is_some);
                let sum = by_cause
                    .iter()
                    .flatten()
                    .try_fold(0, |sum: u64, &count| sum.checked_add(count));
                match (sum, total) {
                    (Some(sum), Some(total)) if sum == total || (!all_known && sum < total) => {
                        Ok(Exits { by_cause, total })
                    }
                    _ => Err(de::Error::custom("the exits do not add up to their total")),
                }
            }
        }
        deserializer.deserialize_map(Causes)
    }
}

#[cfg(test)]
impl schemars::JsonSchema for Exits {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Exits".into()
    }

    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        let count =
            serde_json::json!({"type": ["integer", "null"], "format": "uint64", "minimum": 0});
        let names = ExitCause::ALL.iter().map(|cause| cause.name());
        let mut counts: serde_json::Map<_, _> =
            names.map(|name| (name.into(), count.clone())).collect();
        counts.insert(
            TOTAL.into(),
            serde_json::json!({"type": "integer", "format": "uint64", "minimum": 0}),
        );
        let required: Vec<_> = counts.keys().cloned().collect();
        schemars::json_schema!({
            "description": "Exits by cause, each under exactly one. Null is what the hypervisor does not tell.",
            "type": "object",
            "properties": counts,
            "required": required,
            "additionalProperties": false,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exits_must_be_a_partition() {
        let read = serde_json::from_str::<Exits>;
        assert_eq!(read(r#"{"io": 3, "total": 3}"#).unwrap().get(ExitCause::Io), Some(3));
        assert!(read(r#"{"io": 3, "total": 4}"#).is_err());
        assert!(read(r#"{"io": 3}"#).is_err());
        assert!(read(r#"{"oi": 3, "total": 3}"#).is_err());
        assert!(read(r#"{"io": 18446744073709551615, "hlt": 1, "total": 0}"#).is_err());
    }

    #[test]
    fn what_is_not_known_may_be_the_rest() {
        let read = serde_json::from_str::<Exits>;
        let exits = read(r#"{"io": 3, "cpuid": null, "total": 4}"#).unwrap();
        assert_eq!((exits.get(ExitCause::Cpuid), exits.total()), (None, 4));
        assert_eq!(exits.group(|cause| cause == ExitCause::Cpuid), None);
        assert!(read(r#"{"io": 5, "cpuid": null, "total": 4}"#).is_err());
    }

    #[test]
    fn devices_are_not_memory() {
        let counts: ExitCounts = [
            (ExitCause::Io, 1),
            (ExitCause::HostFaultMmio, 2),
            (ExitCause::Cr3Read, 4),
            (ExitCause::Invlpg, 8),
        ]
        .into_iter()
        .collect();
        assert_eq!(Exits::from(&counts).memory(None), Some(12));
    }
}
