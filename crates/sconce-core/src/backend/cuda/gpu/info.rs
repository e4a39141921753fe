//! What GPUs there are.

use std::ffi::CStr;

use cudarc::driver::sys::{self, CUdevice_attribute as Attribute, CUresult};

use super::context::check;
use super::error::driver_error;
use super::load::{load, mapped};
use super::places::Library;
use crate::error::{Error, Result};

/// The oldest driver that runs what is needed, as its CUDA release.
const OLDEST_DRIVER: u32 = 12_000;

/// A GPU that the driver shows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GpuInfo {
    /// Its number among those that the driver shows: N of `--device cuda:N`.
    pub index: usize,
    /// The maker's name.
    pub name: String,
    /// Memory in bytes, used or not.
    pub memory_bytes: usize,
    /// Major and minor.
    pub compute_capability: (u32, u32),
    /// Where it sits: domain:bus:device.function.
    pub pci_bus_id: String,
    /// The newest CUDA release that the driver knows: 13000 is 13.0.
    pub driver_version: u32,
}

impl GpuInfo {
    /// Why Sconce cannot run on it, if it cannot.
    pub fn problem(&self) -> Option<String> {
        let (major, minor) = self.compute_capability;
        (major < 8).then(|| format!("compute capability {major}.{minor}; 8.0 (Ampere) or later is needed"))
    }
}

/// The GPUs that the driver shows, or why there are none.
pub fn available() -> Result<Vec<GpuInfo>> {
    initialize()?;
    let mut count = 0;
    // SAFETY: `count` is where the answer goes.
    check("cuDeviceGetCount", unsafe { sys::cuDeviceGetCount(&mut count) })?;
    if count == 0 {
        return Err(driver_error("cuDeviceGetCount", CUresult::CUDA_ERROR_NO_DEVICE));
    }
    (0..usize::try_from(count).unwrap_or(0)).map(describe).collect()
}

/// Loads the driver and initializes it. Returns its CUDA release: 13000 is 13.0.
pub(super) fn initialize() -> Result<u32> {
    load(Library::Driver, 0)?;
    let mut version = 0;
    // SAFETY: `version` is where the answer goes; it may be asked before initialization.
    check("cuDriverGetVersion", unsafe { sys::cuDriverGetVersion(&mut version) })?;
    let version = u32::try_from(version).unwrap_or(0);
    if version < OLDEST_DRIVER {
        let message = format!(
            "the NVIDIA driver ({}) is of CUDA {}; {} or later is needed (driver 525 or later)",
            mapped("libcuda.so").join(", "),
            release(version),
            release(OLDEST_DRIVER)
        );
        return Err(Error::config("device", message));
    }
    // SAFETY: the flags must be 0; it may be called any number of times.
    check("cuInit", unsafe { sys::cuInit(0) })?;
    Ok(version)
}

/// A CUDA release as people write it.
pub fn release(version: u32) -> String {
    format!("{}.{}", version / 1000, version % 1000 / 10)
}

/// Device `index`. The driver must have been initialized.
pub(super) fn describe(index: usize) -> Result<GpuInfo> {
    let (mut device, mut version, mut memory_bytes) = (0, 0, 0);
    let (mut name, mut bus) = ([0u8; 256], [0u8; 32]);
    // SAFETY: each call is given the place and the length of what it writes.
    unsafe {
        let code = sys::cuDeviceGet(&mut device, ordinal(index));
        if code == CUresult::CUDA_ERROR_INVALID_DEVICE {
            let mut count = 0;
            check("cuDeviceGetCount", sys::cuDeviceGetCount(&mut count))?;
            return Err(Error::config("device", format!("there is no cuda:{index}; the driver shows {count} GPUs")));
        }
        check("cuDeviceGet", code)?;
        check("cuDriverGetVersion", sys::cuDriverGetVersion(&mut version))?;
        check("cuDeviceGetName", sys::cuDeviceGetName(name.as_mut_ptr().cast(), 255, device))?;
        check("cuDeviceTotalMem", sys::cuDeviceTotalMem_v2(&mut memory_bytes, device))?;
        check("cuDeviceGetPCIBusId", sys::cuDeviceGetPCIBusId(bus.as_mut_ptr().cast(), 31, device))?;
    }
    let major = attribute(device, Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?;
    let minor = attribute(device, Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?;
    Ok(GpuInfo {
        index,
        name: text(&name),
        memory_bytes,
        compute_capability: (u32::try_from(major).unwrap_or(0), u32::try_from(minor).unwrap_or(0)),
        pci_bus_id: text(&bus),
        driver_version: u32::try_from(version).unwrap_or(0),
    })
}

/// A device's number as the driver takes it; one that does not fit is no device's.
pub(super) fn ordinal(index: usize) -> i32 {
    i32::try_from(index).unwrap_or(i32::MAX)
}

/// One of a device's figures.
pub(super) fn attribute(device: sys::CUdevice, attribute: Attribute) -> Result<i32> {
    let mut value = 0;
    // SAFETY: `value` is where the answer goes.
    check("cuDeviceGetAttribute", unsafe { sys::cuDeviceGetAttribute(&mut value, attribute, device) })?;
    Ok(value)
}

fn text(bytes: &[u8]) -> String {
    CStr::from_bytes_until_nul(bytes).unwrap_or_default().to_string_lossy().into_owned()
}
