#![no_std]
//! x
#[panic_handler] fn p(_: &core::panic::PanicInfo) -> ! { loop {} }
