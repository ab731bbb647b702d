//! The few calls of libvirt's that its Rust binding does not make safe: the event loop, and callbacks of domain events.
#![expect(unsafe_code, reason = "domain events are registered with the C library itself")]

use std::{
    ffi::{CStr, c_int, c_void},
    sync::OnceLock,
    thread,
};

use crossbeam_channel::{Receiver, bounded};
use virt::{connect::Connect, error, event, sys};

use crate::hypervisor::DriverHandle;

/// Starts libvirt's event loop, once in this process. Without it there are no events, and libvirtd, whose
/// keepalives nobody answers, ends our connections.
pub(super) fn event_loop() -> Result<(), String> {
    static STARTED: OnceLock<Result<(), String>> = OnceLock::new();
    STARTED
        .get_or_init(|| {
            // Its errors come back from its calls; printed besides, they would say everything twice.
            error::clear_error_callback();
            event::event_register_default_impl().map_err(|error| error.to_string())?;
            // A timer, so that the loop turns even while nobody is connected.
            event::event_add_timeout(1000, |_, _| {}, std::ptr::null_mut())
                .map_err(|error| error.to_string())?;
            let turn = || {
                loop {
                    if let Err(error) = event::event_run_default_impl() {
                        tracing::warn!(%error, "libvirt's event loop stumbled");
                    }
                }
            };
            thread::Builder::new()
                .name("libvirt-events".into())
                .spawn(turn)
                .map_err(|error| error.to_string())?;
            Ok(())
        })
        .clone()
}

/// Begins to connect, in a thread of its own: opening has no time limit, and to a libvirtd that hangs it never
/// ends. The answer comes once; until then nobody needs to try again.
pub(super) fn connect(uri: &str, notify: DriverHandle) -> Receiver<Result<Connect, String>> {
    let (answer, received) = bounded(1);
    let uri = uri.to_owned();
    let open = move || {
        let opened = event_loop().and_then(|()| {
            let connect = Connect::open(Some(&uri)).map_err(|error| error.message().to_owned())?;
            register(&connect, notify.clone())?;
            Ok(connect)
        });
        let _ = answer.send(opened);
        notify.nudge();
    };
    if let Err(error) = thread::Builder::new().name("libvirt-connect".into()).spawn(open) {
        tracing::error!(%error, "no thread to connect to libvirt");
    }
    received
}

unsafe extern "C" fn lifecycle(
    _: sys::virConnectPtr,
    domain: sys::virDomainPtr,
    event: c_int,
    detail: c_int,
    opaque: *mut c_void,
) -> c_int {
    let names = [
        "defined",
        "undefined",
        "started",
        "suspended",
        "resumed",
        "stopped",
        "shut down",
        "suspended by itself",
        "crashed",
    ];
    let what = usize::try_from(event).ok().and_then(|event| names.get(event)).copied().unwrap_or("changed");
    // SAFETY: libvirt hands over a live domain and the pointer that was registered with this callback.
    unsafe { told(domain, what, detail, opaque) };
    0
}

unsafe extern "C" fn rebooted(_: sys::virConnectPtr, domain: sys::virDomainPtr, opaque: *mut c_void) {
    // SAFETY: as above.
    unsafe { told(domain, "rebooted", 0, opaque) };
}

unsafe extern "C" fn io_error(
    _: sys::virConnectPtr,
    domain: sys::virDomainPtr,
    _source: *const std::ffi::c_char,
    _device: *const std::ffi::c_char,
    action: c_int,
    opaque: *mut c_void,
) {
    // SAFETY: as above.
    unsafe { told(domain, "had an I/O error of a disk", action, opaque) };
}

unsafe extern "C" fn agent_lifecycle(
    _: sys::virConnectPtr,
    domain: sys::virDomainPtr,
    state: c_int,
    _reason: c_int,
    opaque: *mut c_void,
) {
    // SAFETY: as above.
    unsafe { told(domain, "guest agent changed", state, opaque) };
}

/// An event only wakes the driver, which then looks: what it sees is the truth, however many events got lost.
///
/// # Safety
/// `domain` is live, and `opaque` is the handle that was registered.
unsafe fn told(domain: sys::virDomainPtr, what: &str, detail: c_int, opaque: *mut c_void) {
    // SAFETY: the name belongs to the domain, which lives as long as the callback; the handle lives until `free`.
    let (name, handle) = unsafe {
        let name = sys::virDomainGetName(domain);
        let name =
            if name.is_null() { String::new() } else { CStr::from_ptr(name).to_string_lossy().into_owned() };
        (name, &*opaque.cast::<DriverHandle>())
    };
    tracing::debug!(domain = name, what, detail, "libvirt tells of a domain");
    handle.nudge();
}

unsafe extern "C" fn free(opaque: *mut c_void) {
    // SAFETY: the pointer came from `Box::into_raw`, and libvirt frees it once.
    drop(unsafe { Box::from_raw(opaque.cast::<DriverHandle>()) });
}

/// Registers for all that changes what runs or how ready it is.
fn register(connect: &Connect, notify: DriverHandle) -> Result<(), String> {
    type Generic = unsafe extern "C" fn(sys::virConnectPtr, sys::virDomainPtr, *mut c_void);
    type Lifecycle =
        unsafe extern "C" fn(sys::virConnectPtr, sys::virDomainPtr, c_int, c_int, *mut c_void) -> c_int;
    type Agent = unsafe extern "C" fn(sys::virConnectPtr, sys::virDomainPtr, c_int, c_int, *mut c_void);
    type IoError = unsafe extern "C" fn(
        sys::virConnectPtr,
        sys::virDomainPtr,
        *const std::ffi::c_char,
        *const std::ffi::c_char,
        c_int,
        *mut c_void,
    );
    // SAFETY: libvirt takes every callback as a generic one and calls it as what its number stands for.
    let callbacks: [(u32, Generic); 4] = unsafe {
        [
            (sys::VIR_DOMAIN_EVENT_ID_LIFECYCLE, std::mem::transmute::<Lifecycle, Generic>(lifecycle)),
            (sys::VIR_DOMAIN_EVENT_ID_REBOOT, rebooted),
            (sys::VIR_DOMAIN_EVENT_ID_IO_ERROR, std::mem::transmute::<IoError, Generic>(io_error)),
            (
                sys::VIR_DOMAIN_EVENT_ID_AGENT_LIFECYCLE,
                std::mem::transmute::<Agent, Generic>(agent_lifecycle),
            ),
        ]
    };
    for (event, callback) in callbacks {
        let opaque = Box::into_raw(Box::new(notify.clone())).cast::<c_void>();
        // SAFETY: the connection is open; `opaque` stays valid until libvirt calls `free`, and does not if this fails.
        let number = unsafe {
            sys::virConnectDomainEventRegisterAny(
                connect.as_ptr(),
                std::ptr::null_mut(),
                c_int::try_from(event).unwrap_or_default(),
                Some(callback),
                opaque,
                Some(free),
            )
        };
        if number < 0 {
            // SAFETY: libvirt did not take it.
            unsafe { free(opaque) };
            return Err(format!("no events of kind {event}: {}", error::Error::last_error().message()));
        }
    }
    Ok(())
}
