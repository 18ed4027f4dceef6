//! A FAT volume in memory with a few files in its root, the same bytes every time.

use std::io::{self, Cursor, Write as _};

use fatfs::{
    Date, DateTime, FatType, FileSystem, FormatVolumeOptions, FsOptions, Time, TimeProvider, format_volume,
};

/// 1 MiB: FAT12 with 2 KiB clusters; holds the largest seed (64 KiB user data, 16 keys of 4 KiB) many times over.
const BYTES: usize = 1024 * 1024;

/// `DC` and the format's version. A constant, since a random id would make every image different.
const VOLUME_ID: u32 = 0xDC00_0001;

/// Every file is from 1980-01-01, the first day that FAT can write.
#[derive(Debug)]
struct Epoch;

static EPOCH: Epoch = Epoch;

impl TimeProvider for Epoch {
    fn get_current_date(&self) -> Date {
        Date {
            year: 1980,
            month: 1,
            day: 1,
        }
    }
    fn get_current_date_time(&self) -> DateTime {
        DateTime {
            date: self.get_current_date(),
            time: Time {
                hour: 0,
                min: 0,
                sec: 0,
                millis: 0,
            },
        }
    }
}

/// The image with `files` written in the order given. Fails only when they don't fit.
pub(super) fn image(files: &[(&str, &[u8])]) -> io::Result<Vec<u8>> {
    let mut disk = Cursor::new(vec![0u8; BYTES]);
    let options = FormatVolumeOptions::new()
        .fat_type(FatType::Fat12)
        .bytes_per_cluster(2048)
        .volume_id(VOLUME_ID)
        .volume_label(*b"CIDATA     ");
    format_volume(&mut disk, options)?;
    {
        let fs = FileSystem::new(&mut disk, FsOptions::new().time_provider(&EPOCH))?;
        let root = fs.root_dir();
        for (name, content) in files {
            let mut file = root.create_file(name)?;
            file.write_all(content)?;
            file.flush()?;
        }
        drop(root);
        fs.unmount()?;
    }
    Ok(disk.into_inner())
}
