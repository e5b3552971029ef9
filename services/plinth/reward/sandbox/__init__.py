"""Where code that a model wrote is run and tested: two locked processes and their owner.

The answer runs in one process, the tests in another; between them go Python literals. So the
answer never sees the tests, the expected values, or the pipe that carries the verdict, and can't
forge what it can't reach. `runner` owns both, `lockdown` is what holds them.

What holds, by the kernel: no file can be opened but the standard library and the system's shared
libraries, and none written (Landlock); only listed system calls work, so there is no socket, no
new process, no signal to another process (seccomp); CPU seconds, address space and open files are
limited; the environment is empty; wall time is the owner's, who kills both.

What does not: flaws of the kernel itself; what can be told from shared hardware; whether a path
exists (`stat` and `chdir` are not Landlock's); memory below the limit. Where a kernel has no
Landlock (before 5.13, or not switched on) or no seccomp, code is not run at all.
"""
