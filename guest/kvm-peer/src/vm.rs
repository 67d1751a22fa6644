//! The virtual machine and its loop.

use anyhow::{Context, Result, anyhow, bail};
use kvm_bindings::{
    KVM_IRQ_ROUTING_IRQCHIP, KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE,
    KVM_PIT_SPEAKER_DUMMY, KvmIrqRouting, kvm_irq_routing_entry,
    kvm_irq_routing_entry__bindgen_ty_1, kvm_irq_routing_irqchip, kvm_pit_config,
};
use kvm_ioctls::{Kvm, VcpuExit, VcpuFd, VmFd};
use umbra_devices::{Platform, PlatformConfig, PlatformEvent, RamLayout};
use umbra_telemetry::{
    BootConfig, ExitCounts, GuestExit, GuestFaults, Message, MmuCounters, Stats,
};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use crate::counters::Counters;
use crate::phases::Phases;
use crate::wire::Wire;
use crate::{cpu, load, sys};

/// Three pages that KVM needs for real mode on CPUs without unrestricted guest, in the PC's
/// reserved region.
const TSS_ADDRESS: usize = 0xfffb_d000;

const PAGE: usize = 4096;

/// 1995-01-01, as good as any: every run has the same.
const WALL_CLOCK: u64 = 788_918_400;

/// Lines of the interrupt controllers that the platform's devices drive: COM1, the clock and SCI.
const LINES: [u8; 3] = [4, 8, 9];

/// A guest that is ready to run.
pub struct Vm {
    vm: VmFd,
    vcpu: VcpuFd,
    platform: Platform,
    /// TSC at `now == 0` of the platform.
    start: u64,
    /// Levels of [`LINES`] as KVM knows them.
    levels: [bool; LINES.len()],
    phases: Phases,
}

impl Vm {
    /// Makes the guest of `config`.
    ///
    /// # Errors
    /// KVM's, and those of [`load`].
    pub fn new(config: &BootConfig, kernel: &str, initrd: &str) -> Result<Vm> {
        let kvm = Kvm::new().context("/dev/kvm")?;
        let vm = kvm.create_vm().context("KVM_CREATE_VM")?;
        vm.set_tss_address(TSS_ADDRESS).context("KVM_SET_TSS_ADDR")?;
        vm.create_irq_chip().context("KVM_CREATE_IRQCHIP")?;
        let pit = kvm_pit_config { flags: KVM_PIT_SPEAKER_DUMMY, ..kvm_pit_config::default() };
        vm.create_pit2(pit).context("KVM_CREATE_PIT2")?;
        vm.set_gsi_routing(&routing()?).context("KVM_SET_GSI_ROUTING")?;

        let size = u64::from(config.memory_mib) << 20;
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), size as usize)])?;
        // For good: the guest lives as long as this program.
        let memory: &'static GuestMemoryMmap = Box::leak(Box::new(memory));
        // Nothing of the host's own memory management may fall into a phase.
        for page in (0..size).step_by(PAGE) {
            memory.write_obj(0u8, GuestAddress(page))?;
        }
        sys::give_memory(&vm, memory)?;
        let entry = load::load(memory, size, &config.append, kernel, initrd)?;
        let vcpu = vm.create_vcpu(0).context("KVM_CREATE_VCPU")?;
        cpu::prepare(&kvm, &vcpu, &entry)?;
        let tsc_hz = u64::from(vcpu.get_tsc_khz().context("KVM_GET_TSC_KHZ")?) * 1000;
        let platform = Platform::new(&PlatformConfig {
            ram: RamLayout { below_4g: size, above_4g: 0 },
            tsc_hz,
            wall_clock_unix_seconds: WALL_CLOCK,
            physical_address_bits: 36,
            tsc_deadline: false,
        });
        let counters = Counters::new([sys::counters_file(&vm)?, sys::counters_file(&vcpu)?])?;
        let phases = Phases::new(counters)?;
        Ok(Vm { vm, vcpu, platform, start: sys::tsc(), levels: [false; LINES.len()], phases })
    }

    /// Runs the guest to its end.
    ///
    /// # Errors
    /// KVM cannot go on.
    pub fn run(mut self, wire: &mut Wire) -> Result<Stats> {
        let guest_exit = loop {
            if let Some(end) = self.step()? {
                break end;
            }
            if self.platform.output_due() {
                self.send_output(wire);
            }
        };
        let counted = self.phases.finish(sys::tsc())?;
        send(wire, &mut self.platform);
        Ok(Stats {
            guest_exit,
            guest_faults: GuestFaults::Trap,
            filter: String::from("trap"),
            exits: ExitCounts::default(),
            mmu: MmuCounters::default(),
            tsc: counted.tsc,
            counters: counted.counters,
            phases: counted.phases,
            audits: (0, 0),
            canary: None,
        })
    }

    /// Runs the guest until it needs something, and answers.
    fn step(&mut self) -> Result<Option<GuestExit>> {
        let exit = match self.vcpu.run() {
            Ok(exit) => exit,
            // A signal, or KVM wants to be called again.
            Err(error) if matches!(error.errno(), libc::EINTR | libc::EAGAIN) => return Ok(None),
            Err(error) => return Err(error).context("KVM_RUN"),
        };
        let tsc = sys::tsc();
        let now = tsc - self.start;
        let event = match exit {
            VcpuExit::IoOut(port, data) => {
                if Platform::is_mark_port(port) {
                    self.phases.count_mark();
                }
                let mut event = None;
                for (size, value) in accesses(data) {
                    event = self.platform.port_write(now, port, size, value).or(event);
                }
                event
            }
            VcpuExit::IoIn(port, data) => {
                let width = if matches!(data.len(), 2 | 4) { data.len() } else { 1 };
                for piece in data.chunks_mut(width) {
                    let value = self.platform.port_read(now, port, width as u8).to_le_bytes();
                    piece.copy_from_slice(&value[..piece.len()]);
                }
                None
            }
            // The interrupt controllers are KVM's, so nothing is there.
            VcpuExit::MmioRead(_, data) => {
                data.fill(0xff);
                None
            }
            VcpuExit::MmioWrite(..) => None,
            VcpuExit::Shutdown => return Ok(Some(GuestExit::TripleFault)),
            other => bail!("KVM left the guest for {other:?}"),
        };
        match event {
            Some(PlatformEvent::Mark(mark)) => self.phases.mark(mark, tsc)?,
            Some(PlatformEvent::End(end)) => return Ok(Some(end)),
            None => (),
        }
        self.carry_lines()?;
        Ok(None)
    }

    /// Tells KVM's interrupt controllers what the devices' lines have become.
    fn carry_lines(&mut self) -> Result<()> {
        for (line, known) in LINES.into_iter().zip(&mut self.levels) {
            let level = self.platform.line(line);
            if level != *known {
                self.vm.set_irq_line(line.into(), level).context("KVM_IRQ_LINE")?;
                *known = level;
            }
        }
        Ok(())
    }

    fn send_output(&mut self, wire: &mut Wire) {
        send(wire, &mut self.platform);
    }
}

/// Each interrupt line goes to its pin of the 8259s and of the I/O APIC, the timer's to pin 2
/// there, as the MADT says. (KVM's own table has pin 0.)
fn routing() -> Result<KvmIrqRouting> {
    const CHIPS: [u32; 3] = [KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE, KVM_IRQCHIP_IOAPIC];
    let entry = |line: u32, chip: u32, pin: u32| kvm_irq_routing_entry {
        gsi: line,
        type_: KVM_IRQ_ROUTING_IRQCHIP,
        u: kvm_irq_routing_entry__bindgen_ty_1 {
            irqchip: kvm_irq_routing_irqchip { irqchip: chip, pin },
        },
        ..kvm_irq_routing_entry::default()
    };
    let pics = (0..16).map(|line| entry(line, CHIPS[line as usize / 8], line % 8));
    // Line 2 is the 8259s' own cascade.
    let ioapic = (0..24)
        .filter(|&line| line != 2)
        .map(|line| entry(line, CHIPS[2], if line == 0 { 2 } else { line }));
    let entries: Vec<_> = pics.chain(ioapic).collect();
    KvmIrqRouting::from_entries(&entries)
        .map_err(|error| anyhow!("the table of interrupt lines: {error:?}"))
}

/// Sends what the guest has printed.
fn send(wire: &mut Wire, platform: &mut Platform) {
    let (console, debug) = (platform.take_console_output(), platform.take_debug_output());
    if !console.is_empty() {
        wire.send(&Message::Console(console));
    }
    if !debug.is_empty() {
        wire.send(&Message::DebugConsole(debug));
    }
}

/// The accesses of an OUT: one of 1, 2 or 4 bytes, or a string of bytes.
fn accesses(data: &[u8]) -> impl Iterator<Item = (u8, u32)> + '_ {
    let width = if matches!(data.len(), 2 | 4) { data.len() } else { 1 };
    data.chunks(width).map(move |piece| {
        let mut value = [0; 4];
        value[..piece.len()].copy_from_slice(piece);
        (width as u8, u32::from_le_bytes(value))
    })
}

#[cfg(test)]
mod tests {
    use super::accesses;

    #[test]
    fn a_string_is_bytes() {
        let split = |data: &[u8]| accesses(data).collect::<Vec<_>>();
        assert_eq!(split(&[7]), [(1, 7)]);
        assert_eq!(split(&[7, 1]), [(2, 0x107)]);
        assert_eq!(split(&[7, 1, 0, 0x80]), [(4, 0x8000_0107)]);
        assert_eq!(split(&[1, 2, 3]), [(1, 1), (1, 2), (1, 3)]);
    }
}
