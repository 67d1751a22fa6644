//! Runs the cases.

use guest_kernels::kit::boot::Boot;
use guest_kernels::kit::context::Context;
use guest_kernels::kit::cpu::{self, Cpu, rflags};
use guest_kernels::kit::observe::Observer;
use guest_kernels::kit::space::Space;
use guest_kernels::kit::stage::{self, Ended};
use guest_kernels::kit::vectors::{Format, LEGACY_WORDS, Vectors, WORDS};
use guest_kernels::kit::{apic, console, descriptors, pic};
use guest_kernels::say;
use umbra_forms::{Case, Form, Kind, Mode, Page, RECORD, Registers, Ring, Role};

use crate::chain::{self, Chain};
use crate::place::{Block, Places, scratch, table};
use crate::registers::{self, Selectors};

/// Hashes on a line.
const ON_A_LINE: usize = 16;

pub fn main(mut boot: Boot) -> u8 {
    let (Some(forms), Some(cases)) = (boot.module(0), boot.module(1)) else {
        say!("forms FAILED: give the table and the cases as modules");
        return 1;
    };
    let ((forms, _), (cases, _)) = (forms.as_chunks::<RECORD>(), cases.as_chunks::<4>());
    pic::init();
    apic::init();
    stage::prepare();
    let space = Space::new(&mut boot.pool);
    space.open_low(&mut boot.pool);
    let places = Places::new(&mut boot.pool, &space);
    space.activate();
    let mut stage = Stage {
        places,
        cpu: Cpu::detect(),
        format: Format::enable(),
        vectors: [registers::vectors(false), registers::vectors(true)],
        after: Vectors { words: [0; WORDS] },
        shape: None,
        align: boot.options.has("align"),
        step: boot.options.has("step"),
    };
    if stage.align {
        cpu::enable_alignment_checks();
    }
    say!("forms: {} forms, {} cases, {:?}", forms.len(), cases.len(), stage.format);
    let show = boot.options.has("show");
    let count = if boot.options.has("chain") {
        let mut count = 0;
        for (seed, cases) in chain::programs(cases) {
            let mut observer = start(count, show, seed);
            stage.run_chain(forms, seed, cases, &mut observer);
            finish(&observer);
            count += 1;
        }
        count
    } else {
        for (index, word) in cases.iter().enumerate() {
            let case = Case(u32::from_le_bytes(*word));
            let mut observer = start(index, show, case.0);
            stage.run(&form(forms, case), case, &mut observer);
            finish(&observer);
        }
        cases.len()
    };
    say!("\nforms END: {count} cases");
    0
}

/// The form of a case.
fn form(forms: &[[u8; RECORD]], case: Case) -> Form {
    forms.get(case.form()).and_then(Form::from_record).expect("every case has a form")
}

/// What takes the next case.
fn start(index: usize, show: bool, number: u32) -> Observer {
    if show {
        say!("case {number:#x}");
        return Observer::Words;
    }
    if index.is_multiple_of(ON_A_LINE) {
        console::print(format_args!("\n@{index:x}"));
    }
    Observer::Hash(0)
}

/// Prints the hash.
fn finish(observer: &Observer) {
    if let Some(hash) = observer.hash() {
        console::print(format_args!(" {hash:08x}"));
    }
}

/// CR0.WP, and whether SMEP and SMAP are on.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Shape {
    write_protect: bool,
    guarded: bool,
}

impl Shape {
    fn of(kind: &Kind) -> Shape {
        let has = |page| kind.first == page || kind.second == Some(page);
        let guarded = has(Page::UserReadOnly);
        Shape { write_protect: !(has(Page::ReadOnly) || guarded), guarded }
    }
}

struct Stage {
    places: Places,
    cpu: Cpu,
    format: Format,
    /// With indices of 32 bits, and of 64.
    vectors: [Vectors; 2],
    after: Vectors,
    shape: Option<Shape>,
    align: bool,
    step: bool,
}

impl Stage {
    fn run(&mut self, form: &Form, case: Case, observer: &mut Observer) {
        let (kind, ring) = (case.kind(), case.ring());
        let block = Block::of(kind, ring);
        self.set_shape(Shape::of(kind));
        let operand = block.operand(form);
        let mut context = registers::context(form, ring, &block, operand);
        if self.align && ring == Ring::User {
            context = context.with_flags(rflags::AC);
        }
        if self.step {
            context = context.with_flags(rflags::TF);
        }
        self.set_memory(form, case, &block, operand);
        self.places.set_form(form, block.offset(form.mode, operand));
        let vectors = self.vectors[usize::from(form.registers == Registers::Index64)];
        self.perform(form.mode, form.flags, &block, &context, &vectors, observer);
        self.places.restore(&block, observer);
    }

    /// Runs the cases of a program in a row, until one of them raises an exception.
    fn run_chain(
        &mut self,
        forms: &[[u8; RECORD]],
        seed: u32,
        cases: impl Iterator<Item = Case>,
        observer: &mut Observer,
    ) {
        let mut chain = Chain::new();
        let mut place = None;
        for case in cases {
            let form = form(forms, case);
            chain.push(&form, case);
            place = Some((form, case));
        }
        // Mode of code, ring and control bits are the same in all of them.
        let Some((form, case)) = place else { return };
        let block = Block::of(case.kind(), case.ring());
        self.set_shape(Shape::of(case.kind()));
        let mut context = registers::context(&form, case.ring(), &block, block.operand(&form));
        let mut vectors = self.vectors[0];
        chain::shuffle(&mut context, &mut vectors, seed.into());
        self.places.set_code(chain.finish());
        self.perform(form.mode, !0, &block, &context, &vectors, observer);
        self.places.restore_all(observer);
    }

    /// Runs a context on the stage, and tells how it ended.
    fn perform(
        &mut self,
        mode: Mode,
        flags: u32,
        block: &Block,
        context: &Context,
        vectors: &Vectors,
        observer: &mut Observer,
    ) {
        if mode == Mode::Bits16 {
            descriptors::set_base_16(block.base as u32);
        }
        self.places.use_table();
        if self.step {
            cpu::clear_dr6();
        }
        let data = Selectors::of(mode, Ring::Kernel).data;
        // SDM vol. 1, "General-Purpose Registers in 64-Bit Mode": the upper halves are undefined in
        // 32-bit modes.
        let defined = if mode == Mode::Bits64 { u64::MAX } else { u32::MAX.into() };
        let ended = stage::run(context, data as u16, self.format, vectors, &mut self.after);
        observe(observer, flags, defined, context, &ended, data);
        if self.step {
            observer.see("dr6", 0, cpu::dr6());
        }
        for index in 0..WORDS {
            if self.after.words[index] != vectors.words[index] {
                observer.see("vectors", index * 8, self.after.words[index]);
            }
        }
        self.after.words[LEGACY_WORDS..].fill(0);
    }

    /// Sets control bits, if they are not as wanted.
    fn set_shape(&mut self, shape: Shape) {
        if self.shape != Some(shape) {
            let guard = |exists| exists && shape.guarded;
            let (smep, smap) = (guard(self.cpu.smep), guard(self.cpu.smap));
            cpu::set_paging_bits(shape.write_protect, smep, smap, self.cpu.nx);
            self.shape = Some(shape);
        }
    }

    /// Puts what the form wants where its operand is, and where other operands are.
    fn set_memory(&self, form: &Form, case: Case, block: &Block, operand: u64) {
        let mut bytes = [0; 8 * WORDS];
        let length = registers::contents(form, case.ring(), block, &self.vectors[0], &mut bytes);
        self.places.put(block, operand, &bytes[..length]);
        if matches!(form.role, Role::Push | Role::Pop) && length <= 64 {
            self.places.put(block, block.scratch(scratch::DATA), &bytes[..length]);
        }
        if !form.tail().is_empty() {
            let (base, limit) = table(form.contents);
            let at = block.scratch(scratch::DESTINATION);
            self.places.put(block, at, &(limit as u16).to_le_bytes());
            self.places.put(block, at + 2, &base.to_le_bytes());
        }
    }
}

/// Tells how registers ended.
fn observe(
    observer: &mut Observer,
    flags: u32,
    defined: u64,
    before: &Context,
    ended: &Ended,
    data: u64,
) {
    let trap = &ended.trap;
    let after = &trap.context;
    observer.see("vector", 0, trap.vector.into());
    observer.see("error", 0, trap.error_code);
    observer.see("cr2", 0, trap.cr2);
    observer.see("rip", 0, after.rip);
    observer.see("cs", 0, after.cs);
    observer.see("ss", 0, after.ss);
    observer.see("flags", 0, after.rflags & u64::from(flags));
    let registers = |c: &Context| {
        [
            c.rax, c.rcx, c.rdx, c.rbx, c.rsp, c.rbp, c.rsi, c.rdi, c.r8, c.r9, c.r10, c.r11,
            c.r12, c.r13, c.r14, c.r15,
        ]
    };
    for (index, (after, before)) in registers(after).into_iter().zip(registers(before)).enumerate()
    {
        let after = after & defined;
        if after != before & defined {
            observer.see("register", index, after);
        }
    }
    for (index, &segment) in ended.segments.iter().enumerate() {
        if u64::from(segment) != data {
            observer.see("segment", index, segment.into());
        }
    }
    observer.see("cr0", 0, ended.cr0);
}
