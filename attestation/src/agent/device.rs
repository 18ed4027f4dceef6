//! The kernel's character devices for reports, where configfs-tsm isn't there: `/dev/sev-guest` (Linux 5.19 and newer;
//! `include/uapi/linux/sev-guest.h`) and `/dev/tdx_guest` (6.2 and newer; `include/uapi/linux/tdx-guest.h`).
//!
//! Everything `unsafe` of this crate's guest side is here: three ioctls on structures whose sizes and offsets a test
//! compares with the headers'.
#![expect(unsafe_code, reason = "ioctls of the SEV and TDX guest devices")]

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::path::Path;

pub(super) const SEV_GUEST: &str = "/dev/sev-guest";
pub(super) const TDX_GUEST: &str = "/dev/tdx_guest";
/// Which level this guest runs at (Linux 6.11 and newer); without an SVSM it is 0.
const VMPL: &str = "/sys/devices/system/cpu/sev/vmpl";
/// `SEV_FW_BLOB_MAX_SIZE`: the longest certificate table that the driver takes.
const TABLE_LEN: usize = 0x4000;
const MESSAGE_VERSION: u8 = 1;
/// Head of `MSG_REPORT_RSP`: status, size, 24 bytes reserved (AMD 56860, guest messages).
const RESPONSE_HEAD: usize = 32;

/// `struct snp_report_req`.
#[repr(C)]
struct SnpReportRequest {
    user_data: [u8; 64],
    vmpl: u32,
    reserved: [u8; 28],
}

/// `struct snp_ext_report_req`.
#[repr(C)]
struct SnpExtendedRequest {
    data: SnpReportRequest,
    certs_address: u64,
    certs_len: u32,
}

/// `struct snp_report_resp`.
#[repr(C)]
struct SnpResponse {
    data: [u8; 4000],
}

/// `struct snp_guest_request_ioctl`.
#[repr(C)]
struct SnpGuestRequest {
    message_version: u8,
    request: u64,
    response: u64,
    firmware_error: u32,
    vmm_error: u32,
}

/// `struct tdx_report_req`.
#[repr(C)]
struct TdxReportRequest {
    report_data: [u8; 64],
    report: [u8; TD_REPORT_LEN],
}

/// Length of a `TDREPORT_STRUCT`.
pub(super) const TD_REPORT_LEN: usize = 1024;

nix::ioctl_readwrite!(snp_get_report, b'S', 0, SnpGuestRequest);
nix::ioctl_readwrite!(snp_get_ext_report, b'S', 2, SnpGuestRequest);
nix::ioctl_readwrite!(tdx_get_report, b'T', 1, TdxReportRequest);

/// No report.
#[derive(Debug, thiserror::Error)]
pub(super) enum DeviceError {
    #[error("cannot open it: {0}")]
    Open(io::Error),
    #[error("{why} (firmware error {firmware:#x}, hypervisor error {vmm:#x})")]
    Snp { why: io::Error, firmware: u32, vmm: u32 },
    #[error("the firmware refuses: status {0:#x}")]
    Status(u32),
    #[error("a report of {0} bytes")]
    Length(u32),
    #[error(transparent)]
    Tdx(#[from] io::Error),
}

/// An SNP report at the guest's own level, and the host's certificate table if it gives one.
pub(super) fn snp_report(report_data: &[u8; 64]) -> Result<(Vec<u8>, Vec<u8>), DeviceError> {
    let device = open(SEV_GUEST)?;
    let vmpl = fs::read_to_string(VMPL).ok();
    let vmpl = vmpl.and_then(|text| text.trim().parse().ok()).unwrap_or(0);
    let mut table = vec![0; TABLE_LEN];
    match request(&device, report_data, vmpl, Some(&mut table)) {
        // The host's table is too long, or the host or the driver knows none: the report matters more.
        Err(DeviceError::Snp { .. }) => Ok((request(&device, report_data, vmpl, None)?, Vec::new())),
        report => Ok((report?, table)),
    }
}

/// A TDREPORT, straight from the TDX module: a TDCALL, in which the host has no part.
pub(super) fn td_report(report_data: &[u8; 64]) -> Result<[u8; TD_REPORT_LEN], DeviceError> {
    let device = open(TDX_GUEST)?;
    let mut request = TdxReportRequest {
        report_data: *report_data,
        report: [0; TD_REPORT_LEN],
    };
    // SAFETY: the descriptor is open for as long as `device` lives, and the driver reads and writes exactly the
    // structure of `TDX_CMD_GET_REPORT0`, which `request` is (see the test of its layout).
    unsafe { tdx_get_report(device.as_raw_fd(), &mut request) }.map_err(io::Error::from)?;
    Ok(request.report)
}

fn open(path: &str) -> Result<File, DeviceError> {
    let options = OpenOptions::new().read(true).write(true).open(Path::new(path));
    options.map_err(DeviceError::Open)
}

fn request(
    device: &File,
    report_data: &[u8; 64],
    vmpl: u32,
    table: Option<&mut [u8]>,
) -> Result<Vec<u8>, DeviceError> {
    let mut response = Box::new(SnpResponse { data: [0; 4000] });
    let mut question = SnpExtendedRequest {
        data: SnpReportRequest {
            user_data: *report_data,
            vmpl,
            reserved: [0; 28],
        },
        certs_address: 0,
        certs_len: 0,
    };
    let extended = table.is_some();
    if let Some(table) = table {
        question.certs_address = table.as_mut_ptr() as u64;
        question.certs_len = table.len() as u32;
    }
    let mut call = SnpGuestRequest {
        message_version: MESSAGE_VERSION,
        request: &raw mut question as u64,
        response: &raw mut *response as u64,
        firmware_error: 0,
        vmm_error: 0,
    };
    let fd = device.as_raw_fd();
    let done = if extended {
        // SAFETY: the descriptor is open for as long as `device` lives. The driver reads and writes `call`, the
        // `snp_ext_report_req` and the `snp_report_resp` that it points to, and at most `certs_len` bytes at
        // `certs_address`; all of them live until after the call, at these sizes (see the test of their layout).
        unsafe { snp_get_ext_report(fd, &mut call) }
    } else {
        // SAFETY: as above; the driver reads an `snp_report_req`, with which `question` begins.
        unsafe { snp_get_report(fd, &mut call) }
    };
    done.map_err(|errno| DeviceError::Snp {
        why: errno.into(),
        firmware: call.firmware_error,
        vmm: call.vmm_error,
    })?;
    report_in(&response.data)
}

/// The report in a `MSG_REPORT_RSP`.
fn report_in(response: &[u8; 4000]) -> Result<Vec<u8>, DeviceError> {
    let number =
        |at: usize| u32::from_le_bytes([response[at], response[at + 1], response[at + 2], response[at + 3]]);
    let (status, len) = (number(0), number(4));
    if status != 0 {
        return Err(DeviceError::Status(status));
    }
    response[RESPONSE_HEAD..]
        .get(..len as usize)
        .filter(|report| !report.is_empty())
        .map(<[u8]>::to_vec)
        .ok_or(DeviceError::Length(len))
}

#[cfg(test)]
mod tests {
    use std::mem::{offset_of, size_of};

    use super::*;

    #[test]
    fn structures_and_numbers_are_those_of_the_kernels_headers() {
        assert_eq!(size_of::<SnpReportRequest>(), 96);
        assert_eq!(offset_of!(SnpReportRequest, vmpl), 64);
        assert_eq!(size_of::<SnpExtendedRequest>(), 112);
        assert_eq!(offset_of!(SnpExtendedRequest, data), 0);
        assert_eq!(offset_of!(SnpExtendedRequest, certs_address), 96);
        assert_eq!(offset_of!(SnpExtendedRequest, certs_len), 104);
        assert_eq!(size_of::<SnpResponse>(), 4000);
        assert_eq!(size_of::<SnpGuestRequest>(), 32);
        assert_eq!(offset_of!(SnpGuestRequest, request), 8);
        assert_eq!(offset_of!(SnpGuestRequest, response), 16);
        assert_eq!(offset_of!(SnpGuestRequest, firmware_error), 24);
        assert_eq!(offset_of!(SnpGuestRequest, vmm_error), 28);
        assert_eq!(size_of::<TdxReportRequest>(), 1088);
        assert_eq!(offset_of!(TdxReportRequest, report), 64);
        // As a program in C prints SNP_GET_REPORT, SNP_GET_EXT_REPORT and TDX_CMD_GET_REPORT0.
        let number = |kind, number, size| nix::request_code_readwrite!(kind, number, size);
        assert_eq!(number(b'S', 0, size_of::<SnpGuestRequest>()), 0xc020_5300);
        assert_eq!(number(b'S', 2, size_of::<SnpGuestRequest>()), 0xc020_5302);
        assert_eq!(number(b'T', 1, size_of::<TdxReportRequest>()), 0xc440_5401);
    }

    #[test]
    fn the_report_of_a_response_is_as_long_as_the_response_says_and_fits() {
        let response = |status: u32, len: u32| {
            let mut response = [0; 4000];
            response[..4].copy_from_slice(&status.to_le_bytes());
            response[4..8].copy_from_slice(&len.to_le_bytes());
            response[32..36].copy_from_slice(b"data");
            response
        };
        assert_eq!(report_in(&response(0, 4)).unwrap(), b"data");
        assert_eq!(report_in(&response(0, 3968)).unwrap().len(), 3968);
        for len in [0, 3969, u32::MAX] {
            assert!(matches!(
                report_in(&response(0, len)),
                Err(DeviceError::Length(found)) if found == len
            ));
        }
        assert!(matches!(
            report_in(&response(0x16, 4)),
            Err(DeviceError::Status(0x16))
        ));
    }

    #[test]
    fn an_ioctl_on_what_is_no_guest_device_is_an_error() {
        let (file, question) = (File::open("/dev/null").unwrap(), [0; 64]);
        let mut table = [0; 64];
        for table in [Some(&mut table[..]), None] {
            let error = request(&file, &question, 0, table).unwrap_err();
            assert!(matches!(&error, DeviceError::Snp { vmm: 0, .. }), "{error}");
        }
        assert!(matches!(open("/nonexistent"), Err(DeviceError::Open(_))));
    }
}
