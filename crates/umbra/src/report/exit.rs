//! The guest's end in words.

use umbra_telemetry::GuestExit;

/// The short text in statistics.
pub fn key(exit: &GuestExit) -> String {
    match exit {
        GuestExit::AcpiOff => "acpi_off".into(),
        GuestExit::Shutdown => "shutdown".into(),
        GuestExit::ExitPort { port, value } => format!("exit_port:{port:#x}={value}"),
        GuestExit::Reset => "reset".into(),
        GuestExit::TripleFault => "triple_fault".into(),
        GuestExit::Halted => "halted".into(),
        GuestExit::Stopped => "stopped".into(),
        GuestExit::Unsupported(sentence) => format!("unsupported: {sentence}"),
        GuestExit::AuditFailed(violation) => format!("audit_failed: {violation}"),
        GuestExit::CanaryBroken { hpa } => format!("canary_broken: {hpa:#x}"),
    }
}

/// A clause for the user.
pub fn describe(exit: &GuestExit) -> String {
    match exit {
        GuestExit::AcpiOff => "the guest powered off (ACPI S5)".into(),
        GuestExit::Shutdown => "the guest shut down (port 0x8900)".into(),
        GuestExit::ExitPort { port, value } => {
            format!("the guest wrote {value} to exit port {port:#x}")
        }
        GuestExit::Reset => "the guest reset the machine".into(),
        GuestExit::TripleFault => "the guest triple-faulted".into(),
        GuestExit::Halted => "the guest halted with interrupts off, for good".into(),
        GuestExit::Stopped => "the guest was ended from outside".into(),
        GuestExit::Unsupported(sentence) => {
            format!("the guest needs what is not supported: {sentence}")
        }
        GuestExit::AuditFailed(violation) => format!("the auditor found a violation: {violation}"),
        GuestExit::CanaryBroken { hpa } => format!(
            "the guest or the hypervisor wrote to memory that is neither's: the canary at host-physical {hpa:#x} is \
             broken"
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exit_ports_name_port_and_value() {
        assert_eq!(key(&GuestExit::ExitPort { port: 0xf4, value: 3 }), "exit_port:0xf4=3");
    }
}
