//! Instructions that every way into the guest has: the general-purpose registers, by their numbers
//! in instruction encodings in an array at RDI. RAX and RSP, which vendors keep elsewhere, are left
//! out.

/// Pushes the registers that a function preserves.
macro_rules! push_preserved {
    () => {
        "push rbx\npush rbp\npush r12\npush r13\npush r14\npush r15"
    };
}

/// Pops what [`push_preserved`] pushed.
macro_rules! pop_preserved {
    () => {
        "pop r15\npop r14\npop r13\npop r12\npop rbp\npop rbx"
    };
}

/// Loads the guest's registers; RDI, which names the array, comes last.
macro_rules! load_guest {
    () => {
        concat!(
            "mov rcx, [rdi + 8]\n",
            "mov rdx, [rdi + 16]\n",
            "mov rbx, [rdi + 24]\n",
            "mov rbp, [rdi + 40]\n",
            "mov rsi, [rdi + 48]\n",
            "mov r8, [rdi + 64]\n",
            "mov r9, [rdi + 72]\n",
            "mov r10, [rdi + 80]\n",
            "mov r11, [rdi + 88]\n",
            "mov r12, [rdi + 96]\n",
            "mov r13, [rdi + 104]\n",
            "mov r14, [rdi + 112]\n",
            "mov r15, [rdi + 120]\n",
            "mov rdi, [rdi + 56]"
        )
    };
}

/// Stores the guest's registers; its RDI is popped from the stack.
macro_rules! store_guest {
    () => {
        concat!(
            "mov [rdi + 8], rcx\n",
            "mov [rdi + 16], rdx\n",
            "mov [rdi + 24], rbx\n",
            "mov [rdi + 40], rbp\n",
            "mov [rdi + 48], rsi\n",
            "mov [rdi + 64], r8\n",
            "mov [rdi + 72], r9\n",
            "mov [rdi + 80], r10\n",
            "mov [rdi + 88], r11\n",
            "mov [rdi + 96], r12\n",
            "mov [rdi + 104], r13\n",
            "mov [rdi + 112], r14\n",
            "mov [rdi + 120], r15\n",
            "pop qword ptr [rdi + 56]"
        )
    };
}

pub(crate) use {load_guest, pop_preserved, push_preserved, store_guest};
