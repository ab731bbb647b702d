//! The few calls of libvirt's that its Rust binding does not make safe: the event loop, and callbacks of domain events.
#![expect(unsafe_code, reason = "domain events are registered with the C library itself")]

use std::{
    ffi::{CStr, c_char, c_int, c_void},
    sync::OnceLock,
    thread,
};

use crossbeam_channel::{Receiver, Sender, bounded};
use virt::{connect::Connect, error, event, sys};

use crate::hypervisor::DriverHandle;

/// What an event said beyond that it is time to look.
#[derive(Debug)]
pub(super) struct Happening {
    pub(super) domain: String,
    pub(super) what: What,
}

#[derive(Debug)]
pub(super) enum What {
    /// It ended, and how.
    Ended(u32),
    Rebooted,
    /// One of its disks failed, and so it was paused.
    DiskFailed(String),
}

/// What callbacks are given.
#[derive(Clone)]
struct Listener {
    handle: DriverHandle,
    happened: Sender<Happening>,
}

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
pub(super) fn connect(
    uri: &str,
    handle: &DriverHandle,
    happened: &Sender<Happening>,
) -> Receiver<Result<Connect, String>> {
    let (answer, received) = bounded(1);
    let uri = uri.to_owned();
    let listener = Listener { handle: handle.clone(), happened: happened.clone() };
    let open = move || {
        let opened = event_loop().and_then(|()| {
            let connect = Connect::open(Some(&uri)).map_err(|error| error.message().to_owned())?;
            register(&connect, &listener)?;
            Ok(connect)
        });
        let _ = answer.send(opened);
        listener.handle.nudge();
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
    let ended = u32::try_from(event).is_ok_and(|event| event == sys::VIR_DOMAIN_EVENT_STOPPED);
    let happened = ended.then(|| What::Ended(u32::try_from(detail).unwrap_or(u32::MAX)));
    // SAFETY: libvirt hands over a live domain and the pointer that was registered with this callback.
    unsafe { told(domain, what, detail, happened, opaque) };
    0
}

unsafe extern "C" fn rebooted(_: sys::virConnectPtr, domain: sys::virDomainPtr, opaque: *mut c_void) {
    // SAFETY: as above.
    unsafe { told(domain, "rebooted", 0, Some(What::Rebooted), opaque) };
}

unsafe extern "C" fn io_error(
    _: sys::virConnectPtr,
    domain: sys::virDomainPtr,
    source: *const c_char,
    device: *const c_char,
    action: c_int,
    reason: *const c_char,
    opaque: *mut c_void,
) {
    // SAFETY: libvirt hands over strings that end, or nothing.
    let [source, device, reason] = unsafe { [text(source), text(device), text(reason)] };
    let paused = u32::try_from(action).is_ok_and(|action| action == sys::VIR_DOMAIN_EVENT_IO_ERROR_PAUSE);
    let why = if reason.is_empty() { "for an unknown reason" } else { reason.as_str() };
    let happened = paused.then(|| What::DiskFailed(format!("disk {device} ({source}): {why}")));
    // SAFETY: as above.
    unsafe { told(domain, "had an I/O error of a disk", action, happened, opaque) };
}

/// # Safety
/// `from` is null or ends with a zero.
unsafe fn text(from: *const c_char) -> String {
    if from.is_null() {
        return String::new();
    }
    // SAFETY: the caller vouches for it.
    unsafe { CStr::from_ptr(from) }.to_string_lossy().into_owned()
}

unsafe extern "C" fn agent_lifecycle(
    _: sys::virConnectPtr,
    domain: sys::virDomainPtr,
    state: c_int,
    _reason: c_int,
    opaque: *mut c_void,
) {
    // SAFETY: as above.
    unsafe { told(domain, "guest agent changed", state, None, opaque) };
}

/// An event wakes the driver, which then looks: what it sees is the truth, however many events got lost. Only how
/// something came about is known by the event alone.
///
/// # Safety
/// `domain` is live, and `opaque` is the listener that was registered.
unsafe fn told(
    domain: sys::virDomainPtr,
    what: &str,
    detail: c_int,
    happened: Option<What>,
    opaque: *mut c_void,
) {
    // SAFETY: the name belongs to the domain, which lives as long as the callback; the listener lives until `free`.
    let (domain, listener) = unsafe { (text(sys::virDomainGetName(domain)), &*opaque.cast::<Listener>()) };
    tracing::debug!(domain, what, detail, "libvirt tells of a domain");
    if let Some(what) = happened
        && listener.happened.try_send(Happening { domain, what }).is_err()
    {
        tracing::warn!("libvirt tells more than is taken: how something came about is lost");
    }
    listener.handle.nudge();
}

unsafe extern "C" fn free(opaque: *mut c_void) {
    // SAFETY: the pointer came from `Box::into_raw`, and libvirt frees it once.
    drop(unsafe { Box::from_raw(opaque.cast::<Listener>()) });
}

/// Registers for all that changes what runs or how ready it is.
fn register(connect: &Connect, listener: &Listener) -> Result<(), String> {
    type Generic = unsafe extern "C" fn(sys::virConnectPtr, sys::virDomainPtr, *mut c_void);
    type Lifecycle =
        unsafe extern "C" fn(sys::virConnectPtr, sys::virDomainPtr, c_int, c_int, *mut c_void) -> c_int;
    type Agent = unsafe extern "C" fn(sys::virConnectPtr, sys::virDomainPtr, c_int, c_int, *mut c_void);
    type IoError = unsafe extern "C" fn(
        sys::virConnectPtr,
        sys::virDomainPtr,
        *const c_char,
        *const c_char,
        c_int,
        *const c_char,
        *mut c_void,
    );
    // SAFETY: libvirt takes every callback as a generic one and calls it as what its number stands for.
    let callbacks: [(u32, Generic); 4] = unsafe {
        [
            (sys::VIR_DOMAIN_EVENT_ID_LIFECYCLE, std::mem::transmute::<Lifecycle, Generic>(lifecycle)),
            (sys::VIR_DOMAIN_EVENT_ID_REBOOT, rebooted),
            (sys::VIR_DOMAIN_EVENT_ID_IO_ERROR_REASON, std::mem::transmute::<IoError, Generic>(io_error)),
            (
                sys::VIR_DOMAIN_EVENT_ID_AGENT_LIFECYCLE,
                std::mem::transmute::<Agent, Generic>(agent_lifecycle),
            ),
        ]
    };
    for (event, callback) in callbacks {
        let opaque = Box::into_raw(Box::new(listener.clone())).cast::<c_void>();
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
