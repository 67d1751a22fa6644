//! Runs the programs.

use guest_kernels::kit::boot::Boot;
use guest_kernels::kit::cpu::{self, Cpu, rflags};
use guest_kernels::kit::observe::Observer;
use guest_kernels::kit::traps::{self, vector as exception};
use guest_kernels::kit::vectors::{Format, LEGACY_WORDS, Vectors, WORDS};
use guest_kernels::kit::worlds::{self, State};
use guest_kernels::kit::{apic, console, pic};
use guest_kernels::random::scramble;
use guest_kernels::say;
use umbra_forms::program::{Program, Setting, World, selector, vector};

use crate::arena::{self, Arena};
use crate::tables::Tables;

/// So many events end a program.
const PATIENCE: usize = 20;
/// CR4.PSE and CR4.PAE.
const PSE: u64 = 1 << 4;
const PAE: u64 = 1 << 5;
/// RFLAGS.VM.
const VIRTUAL: u64 = 1 << 17;

/// IA32_SYSENTER_CS, ESP, EIP; IA32_STAR, LSTAR, CSTAR, FMASK, KERNEL_GS_BASE.
mod msr {
    pub const SYSENTER_CS: u32 = 0x174;
    pub const SYSENTER_ESP: u32 = 0x175;
    pub const SYSENTER_EIP: u32 = 0x176;
    pub const STAR: u32 = 0xc000_0081;
    pub const LSTAR: u32 = 0xc000_0082;
    pub const CSTAR: u32 = 0xc000_0083;
    pub const FMASK: u32 = 0xc000_0084;
    pub const KERNEL_GS_BASE: u32 = 0xc000_0102;
}

pub fn main(mut boot: Boot) -> u8 {
    let Some(module) = boot.module(0) else {
        say!("machine FAILED: give the programs as a module");
        return 1;
    };
    pic::init();
    apic::init();
    worlds::forgive_debug();
    traps::handle(vector::INTERRUPT, |_| apic::end_of_interrupt());
    let cpu = Cpu::detect();
    let format = Format::enable();
    cpu::set_paging_bits(true, false, false, cpu.nx);
    arena::set_priority();
    let arena = Arena::new(&mut boot.pool, cpu.nx);
    let tables = Tables::new(&mut boot.pool);
    let mut stage = Stage {
        arena,
        tables,
        cpu,
        format,
        vectors: vectors(),
        after: Vectors { words: [0; WORDS] },
    };
    cpu::set_system_calls();
    let show = boot.options.has("show");
    let tell = boot.options.has("events");
    let (words, _) = module.as_chunks::<8>();
    say!("machine: {:?}", stage.format);
    let mut rest = words;
    let mut count = 0;
    while let Some((first, behind)) = rest.split_first() {
        let length = u64::from_le_bytes(*first) as usize;
        // The rest of the module is empty.
        if length == 0 {
            break;
        }
        let (words, next) = behind.split_at(length.min(behind.len()));
        rest = next;
        let mut buffer = [0; umbra_forms::program::WORDS];
        for (word, bytes) in buffer.iter_mut().zip(words) {
            *word = u64::from_le_bytes(*bytes);
        }
        let Some(program) = Program::from_words(&buffer[..length.min(buffer.len())]) else {
            say!("machine FAILED: program {count} is none");
            return 1;
        };
        let mut observer = if show { Observer::Words } else { Observer::Hash(0) };
        if show {
            say!("program {count}");
        }
        let events = stage.run(&program, &mut observer);
        if let Some(hash) = observer.hash() {
            console::print(format_args!("@{hash:08x}"));
        }
        if tell {
            for (vector, step) in events.iter().flatten() {
                console::print(format_args!(" {vector:x}.{step:x}"));
            }
        }
        say!("");
        count += 1;
    }
    say!("machine END: {count} programs");
    0
}

/// Vectors of events and the steps in which they came.
type Events = [Option<(u64, usize)>; PATIENCE];

/// Vector registers, as a program finds them.
fn vectors() -> Vectors {
    let mut words: [u64; WORDS] = core::array::from_fn(|word| scramble(word as u64));
    // SDM vol. 1, "FXSAVE Area": masked exceptions, four of eight x87 registers in use, no
    // instruction yet.
    words[0] = 0x037f | 0x2000 << 16 | 0xf0 << 32;
    (words[1], words[2], words[3]) = (0, 0, 0x1f80);
    for register in 0..8 {
        words[4 + 2 * register] |= 1 << 63;
        words[5 + 2 * register] = 0x3fff + register as u64;
    }
    // Reserved, and the software's. The indices of gathers are small.
    words[52..LEGACY_WORDS].fill(0);
    words[LEGACY_WORDS..72].fill(0);
    words[LEGACY_WORDS] = 7;
    let indices = [4 << 32, 12 << 32 | 8, 20 << 32 | 16, 28 << 32 | 24];
    words[28..30].copy_from_slice(&indices[..2]);
    words[80..82].copy_from_slice(&indices[2..]);
    Vectors { words }
}

struct Stage {
    arena: Arena,
    tables: Tables,
    cpu: Cpu,
    format: Format,
    vectors: Vectors,
    after: Vectors,
}

impl Stage {
    fn run(&mut self, program: &Program, observer: &mut Observer) -> Events {
        let setting = &program.setting;
        let mut state = self.prepare(program);
        let mut events = [None; PATIENCE];
        let mut interrupted = false;
        for event in &mut events {
            let ended = worlds::run(&state);
            if ended.vector == u64::from(exception::DB) {
                observer.see("dr6", 0, cpu::dr6());
                cpu::clear_dr6();
            }
            if ended.vector == u64::from(vector::INTERRUPT) {
                interrupted = true;
                apic::end_of_interrupt();
            }
            observe(setting, &ended, observer);
            let step = program.step(ended.rip);
            *event = Some((ended.vector, step.unwrap_or(0xff)));
            let Some(next) = self.next(program, &ended, step) else { break };
            state = next;
        }
        self.finish(setting, interrupted, observer);
        events
    }

    /// Sets everything that a program starts from.
    fn prepare(&self, program: &Program) -> State {
        let setting = &program.setting;
        let root = self.arena.root(setting.world);
        let (call, stack) = self.tables.call();
        for (msr, value) in [
            (msr::SYSENTER_CS, selector::CODE.into()),
            (msr::SYSENTER_ESP, stack),
            (msr::SYSENTER_EIP, call),
            (msr::STAR, 0x1b << 48 | 0x08 << 32),
            (msr::LSTAR, call),
            (msr::CSTAR, call),
            (msr::FMASK, 0x4_7700),
            (msr::KERNEL_GS_BASE, 0),
        ] {
            cpu::set_call_register(msr, value);
        }
        let mut state = State {
            legacy: (setting.world != World::Long).into(),
            cr3: root,
            cr0: cpu::cr0() ^ setting.cr0,
            cr4: self.cr4(setting),
            touch: self.arena.touch(setting.world),
            registers: setting.registers,
            rip: setting.rip,
            flags: setting.flags,
            bases: setting.bases,
            ..State::default()
        };
        let [es, cs, ss, ds, fs, gs] = setting.selectors.map(u64::from);
        (state.es, state.cs, state.ss, state.ds, state.fs, state.gs) = (es, cs, ss, ds, fs, gs);
        self.tables.build(setting, root, &mut state);
        self.arena.set(program);
        self.format.load(&self.vectors);
        if setting.interrupt {
            apic::send_self(vector::INTERRUPT);
        }
        cpu::set_cr2(0);
        cpu::clear_dr6();
        let [dr0, dr1, dr2, dr3, dr7] = setting.debug;
        cpu::set_debug_registers([dr0, dr1, dr2, dr3], dr7);
        state
    }

    fn cr4(&self, setting: &Setting) -> u64 {
        // VME, PVI, TSD and DE; guards where the CPU has them.
        let mut can = 0xf;
        if self.cpu.smep {
            can |= umbra_paging::cr4::SMEP;
        }
        if self.cpu.smap {
            can |= umbra_paging::cr4::SMAP;
        }
        let cr4 = cpu::cr4() ^ (setting.cr4 & can);
        if setting.world == World::Bits32 { cr4 & !PAE | PSE } else { cr4 }
    }

    /// Where the program goes on: behind a fault with the next step, with the segments of the
    /// start.
    fn next(&self, program: &Program, ended: &State, step: Option<usize>) -> Option<State> {
        const TRAPS: [u64; 4] = [1, 2, 3, 4];
        let setting = &program.setting;
        let mut state = *ended;
        let step = step?;
        if ended.vector == u64::from(vector::STOP) || ended.vector == worlds::TASK {
            return None;
        }
        if ended.vector == u64::from(exception::DB) {
            state.flags |= rflags::RF;
        }
        if ended.vector < 32 && !TRAPS.contains(&ended.vector) {
            state.rip = program.behind(step)?;
            if ended.cs & 0xffff == u64::from(setting.selectors[1]) {
                let [es, _, ss, ds, fs, gs] = setting.selectors.map(u64::from);
                (state.es, state.ss, state.ds, state.fs, state.gs) = (es, ss, ds, fs, gs);
                (state.registers[4], state.bases) = (setting.registers[4], setting.bases);
            }
        }
        self.tables.release_task();
        state.cr3 = self.arena.root(setting.world);
        Some(state)
    }

    /// Tells what is left, and cleans up.
    fn finish(&mut self, setting: &Setting, interrupted: bool, observer: &mut Observer) {
        // DR7.GD may still be set: the first access clears it.
        let _ = cpu::dr7();
        for (index, value) in
            [cpu::dr0(), cpu::dr1(), cpu::dr2(), cpu::dr3(), cpu::dr7()].into_iter().enumerate()
        {
            if value != setting.debug[index] {
                observer.see("debug", index, value);
            }
        }
        cpu::clear_breakpoints();
        cpu::clear_dr6();
        arena::restore_priority(observer);
        if setting.interrupt {
            // Where its delivery failed, the interrupt is in service still.
            while apic::in_service(vector::INTERRUPT) {
                apic::end_of_interrupt();
            }
            if !interrupted {
                cpu::interruptible(0, || false);
            }
        }
        self.format.store(&mut self.after);
        for index in 0..WORDS {
            if self.after.words[index] != self.vectors.words[index] {
                observer.see("vectors", index * 8, self.after.words[index]);
            }
        }
        self.after.words[LEGACY_WORDS..].fill(0);
        self.tables.changed().for_each(|(name, index, value)| observer.see(name, index, value));
        self.arena.restore(setting.world, observer);
    }
}

/// Tells what an event found.
fn observe(setting: &Setting, ended: &State, observer: &mut Observer) {
    let wide = setting.world == World::Long
        && [selector::CODE, selector::USER_CODE].contains(&(ended.cs as u16));
    observer.see("vector", 0, ended.vector);
    observer.see("error", 0, ended.error);
    if ended.vector == u64::from(exception::PF) {
        observer.see("cr2", 0, cpu::cr2());
    }
    observer.see("rip", 0, ended.rip);
    // SDM vol. 1, "General-Purpose Registers in 64-Bit Mode": upper halves are undefined outside of
    // it.
    let (mask, count) = if wide { (u64::MAX, 16) } else { (u32::MAX.into(), 8) };
    // Between two iterations RF is pushed set (SDM, "RF (resume) flag"). Bochs leaves it clear.
    let resume = if ended.vector == u64::from(exception::DB) { rflags::RF } else { 0 };
    observer.see("flags", 0, ended.flags & u64::from(setting.defined) & !resume);
    for (index, register) in ended.registers.iter().take(count).enumerate() {
        observer.see("register", index, register & mask);
    }
    let segments = [ended.es, ended.cs, ended.ss, ended.ds, ended.fs, ended.gs];
    for (index, segment) in segments.into_iter().enumerate() {
        observer.see("segment", index, segment & 0xffff);
    }
    if setting.world == World::Long && ended.flags & VIRTUAL == 0 {
        observer.see("base", 0, ended.bases[0]);
        observer.see("base", 1, ended.bases[1]);
    }
    observer.see("cr0", 0, ended.cr0);
    observer.see("cr4", 0, ended.cr4);
}
