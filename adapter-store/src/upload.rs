//! What was uploaded, as the files of one adapter folder: unpacked, bounded, with plain names.

use std::collections::HashSet;
use std::io::Read;

use bytes::Bytes;

use crate::StoreError;
use crate::error::refused;

/// Most files of one adapter.
pub const FILES: usize = 64;
/// Largest adapter, in bytes, unpacked.
pub const UPLOAD_BYTES: usize = 4 << 30;

/// What a tar archive may take beside its files: headers, long names, folders.
const ARCHIVE_OVERHEAD_BYTES: u64 = 16 << 20;

/// One file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UploadFile {
    pub name: String,
    pub bytes: Bytes,
}

/// The adapter's files: archives (zip, tar, tar.gz) are unpacked, and a folder around them is taken off.
pub fn unpack(files: Vec<UploadFile>) -> Result<Vec<UploadFile>, StoreError> {
    let mut unpacked = Vec::new();
    for file in files {
        match kind(&file) {
            Kind::Zip => unzip(&file, &mut unpacked)?,
            Kind::Tar => untar(&file, file.bytes.as_ref(), &mut unpacked)?,
            Kind::TarGz => {
                // Headers and padding count too, or an endless archive of empty folders would be read to its end.
                let unpacks_to = UPLOAD_BYTES as u64 + ARCHIVE_OVERHEAD_BYTES;
                untar(&file, flate2::read::MultiGzDecoder::new(file.bytes.as_ref()).take(unpacks_to), &mut unpacked)?;
            }
            Kind::Plain => unpacked.push(file),
        }
    }
    check_total(&unpacked)?;
    in_one_folder(unpacked)
}

enum Kind {
    Zip,
    Tar,
    TarGz,
    Plain,
}

fn kind(file: &UploadFile) -> Kind {
    if file.bytes.starts_with(b"PK\x03\x04") && !file.name.ends_with(".bin") {
        Kind::Zip
    } else if file.bytes.get(257..262) == Some(b"ustar") {
        Kind::Tar
    } else if file.bytes.starts_with(&[0x1f, 0x8b]) && [".tar.gz", ".tgz"].iter().any(|end| file.name.ends_with(end)) {
        Kind::TarGz
    } else {
        Kind::Plain
    }
}

fn unzip(file: &UploadFile, out: &mut Vec<UploadFile>) -> Result<(), StoreError> {
    let wrong = |reason: String| refused(format!("{} is not a readable zip archive: {reason}.", file.name));
    let mut archive = zip::ZipArchive::new(std::io::Cursor::new(&file.bytes)).map_err(|e| wrong(e.to_string()))?;
    for index in 0..archive.len() {
        let entry = archive.by_index(index).map_err(|e| wrong(e.to_string()))?;
        if entry.is_dir() {
            continue;
        }
        if !entry.is_file() {
            return Err(refused(format!("{} holds something that is neither a file nor a folder.", file.name)));
        }
        let name = entry.name().map_err(|e| wrong(e.to_string()))?.into_owned();
        add(out, name, entry)?;
    }
    Ok(())
}

fn untar(file: &UploadFile, bytes: impl Read, out: &mut Vec<UploadFile>) -> Result<(), StoreError> {
    let wrong = |reason: String| refused(format!("{} is not a readable tar archive: {reason}.", file.name));
    let mut archive = tar::Archive::new(bytes);
    for entry in archive.entries().map_err(|e| wrong(e.to_string()))? {
        let entry = entry.map_err(|e| wrong(e.to_string()))?;
        match entry.header().entry_type() {
            tar::EntryType::Directory | tar::EntryType::XGlobalHeader | tar::EntryType::XHeader => continue,
            tar::EntryType::Regular => {}
            _ => return Err(refused(format!("{} holds something that is neither a file nor a folder.", file.name))),
        }
        let name = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
        add(out, name, entry)?;
    }
    Ok(())
}

/// Reads one entry within what is left of the bounds: the sizes that an archive states are not believed.
fn add(out: &mut Vec<UploadFile>, name: String, entry: impl Read) -> Result<(), StoreError> {
    let used: usize = out.iter().map(|file| file.bytes.len()).sum();
    let left = UPLOAD_BYTES.saturating_sub(used) as u64;
    let mut bytes = Vec::new();
    entry.take(left + 1).read_to_end(&mut bytes).map_err(|e| refused(format!("{name} cannot be read: {e}.")))?;
    out.push(UploadFile { name, bytes: bytes.into() });
    check_total(out)
}

fn check_total(files: &[UploadFile]) -> Result<(), StoreError> {
    let total: usize = files.iter().map(|file| file.bytes.len()).sum();
    if files.len() > FILES || total > UPLOAD_BYTES {
        return Err(StoreError::TooLarge(format!("an adapter has at most {FILES} files and {UPLOAD_BYTES} bytes.")));
    }
    Ok(())
}

/// Takes the folder of `adapter_config.json` as the adapter; every name in it must then be a plain one.
fn in_one_folder(files: Vec<UploadFile>) -> Result<Vec<UploadFile>, StoreError> {
    let tidy = |name: &str| name.replace('\\', "/").trim_start_matches("./").to_owned();
    let mut files: Vec<UploadFile> =
        files.into_iter().map(|file| UploadFile { name: tidy(&file.name), ..file }).collect();
    let folder = adapter_folder(&files)?;
    files.retain(|file| file.name.starts_with(&folder));
    for file in &mut files {
        file.name = file.name[folder.len()..].to_owned();
    }
    // What lies deeper (checkpoints, optimiser state) is no part of the adapter.
    files.retain(|file| !file.name.contains('/') && !file.name.starts_with('.'));
    let shown = |name: &str| name.chars().take(80).collect::<String>();
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"._-+ ()=@,".contains(&b);
    let odd = files.iter().find(|file| file.name.is_empty() || file.name.len() > 200 || !file.name.bytes().all(plain));
    if let Some(odd) = odd {
        return Err(refused(format!("{:?} is not a plain file name.", shown(&odd.name))));
    }
    let mut names = HashSet::new();
    match files.iter().find(|file| !names.insert(file.name.as_str())) {
        Some(twice) => Err(refused(format!("{} is there twice.", twice.name))),
        None => Ok(files),
    }
}

/// The folder nearest to the top with an `adapter_config.json` (checkpoints lie deeper), ending in a slash if it is one.
fn adapter_folder(files: &[UploadFile]) -> Result<String, StoreError> {
    const CONFIG: &str = "adapter_config.json";
    let depth = |folder: &str| folder.matches('/').count();
    let whole = |folder: &&str| folder.is_empty() || folder.ends_with('/');
    let mut folders: Vec<&str> = files.iter().filter_map(|file| file.name.strip_suffix(CONFIG)).filter(whole).collect();
    folders.sort_by_key(|folder| depth(folder));
    folders.dedup();
    match folders[..] {
        [] => Ok(String::new()),
        [first, second, ..] if depth(first) == depth(second) => {
            Err(refused(format!("{first} and {second} are two adapters; send one at a time.")))
        }
        [first, ..] => Ok(first.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn file(name: &str, bytes: &[u8]) -> UploadFile {
        UploadFile { name: name.into(), bytes: bytes.to_vec().into() }
    }

    #[test]
    fn a_folder_around_the_files_is_taken_off_and_what_is_deeper_left_out() {
        let files = unpack(vec![
            file("run/adapter_config.json", b"{}"),
            file("run/adapter_model.safetensors", b"x"),
            file("run/checkpoint-1/adapter_config.json", b"{}"),
            file("other.txt", b""),
        ]);
        let names: Vec<String> = files.unwrap().into_iter().map(|file| file.name).collect();
        assert_eq!(names, ["adapter_config.json", "adapter_model.safetensors"]);
    }

    #[test]
    fn names_that_leave_the_folder_are_refused() {
        for name in ["..", "a\0b", "a:b", "\u{202e}gpj"] {
            let files = unpack(vec![file("adapter_config.json", b"{}"), file(name, b"")]);
            assert!(files.is_err() || files.unwrap().len() == 1, "{name:?} was taken");
        }
    }

    #[test]
    fn the_adapter_nearest_to_the_top_is_meant_in_any_order() {
        let files = vec![
            file("checkpoint-1/adapter_config.json", b"old"),
            file("adapter_config.json", b"new"),
            file("old_adapter_config.json", b""),
        ];
        let files = unpack(files).unwrap();
        assert_eq!(files, [file("adapter_config.json", b"new"), file("old_adapter_config.json", b"")]);
    }

    fn packed(kind: tar::EntryType, count: usize) -> Vec<u8> {
        let mut builder = tar::Builder::new(Vec::new());
        for number in 0..count {
            let mut header = tar::Header::new_ustar();
            header.set_size(2);
            header.set_entry_type(kind);
            let name = if number == 0 { "lora/adapter_config.json".into() } else { format!("lora/{number}") };
            builder.append_data(&mut header, name, &b"{}"[..]).unwrap();
        }
        builder.into_inner().unwrap()
    }

    fn squeezed(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    #[test]
    fn archives_are_unpacked() {
        let tar = packed(tar::EntryType::Regular, 1);
        for (name, bytes) in [("lora.tar", tar.clone()), ("lora.tar.gz", squeezed(&tar)), ("lora.tgz", squeezed(&tar))]
        {
            let files = unpack(vec![file(name, &bytes)]).unwrap();
            assert_eq!(files, [file("adapter_config.json", b"{}")], "{name}");
        }
    }

    #[test]
    fn archives_with_links_or_too_much_in_them_are_refused() {
        let refused = |name: &str, bytes: Vec<u8>| unpack(vec![file(name, &bytes)]).unwrap_err().to_string();
        let link = refused("a.tar", packed(tar::EntryType::Symlink, 1));
        assert!(link.contains("neither a file nor a folder"), "{link}");
        let many = refused("a.tar", packed(tar::EntryType::Regular, FILES + 1));
        assert!(many.contains("at most 64 files"), "{many}");
        let cut = refused("a.tgz", squeezed(&packed(tar::EntryType::Regular, 1))[..40].to_vec());
        assert!(cut.contains("tar archive"), "{cut}");
    }
}
