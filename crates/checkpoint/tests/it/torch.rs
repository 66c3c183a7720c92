//! Files of torch.save (made by `fixtures/make.py`), and pickles that want to be programs.

use lowrank_checkpoint::{Checkpoint, CheckpointError, Dtype};

use crate::check_error;

const ZIP: &[u8] = include_bytes!("../fixtures/zip.bin");
const ZIP64: &[u8] = include_bytes!("../fixtures/zip64.bin");
const LEGACY: &[u8] = include_bytes!("../fixtures/legacy.bin");
const NESTED: &[u8] = include_bytes!("../fixtures/nested.bin");
const EVIL: &[u8] = include_bytes!("../fixtures/evil.bin");

fn open(file: &[u8]) -> Result<Checkpoint, CheckpointError> {
    Checkpoint::from_bytes("file.bin", file.to_vec())
}

#[test]
fn every_format_holds_the_same_tensors() {
    for file in [ZIP, ZIP64, LEGACY, NESTED] {
        let checkpoint = open(file).unwrap();
        let check = |name: &str, dtype, shape: &[usize], values: &[f64]| {
            let info = checkpoint.info(name).unwrap();
            assert_eq!((info.dtype, info.shape.as_slice()), (dtype, shape), "{name}");
            assert_eq!(checkpoint.read_f64(name).unwrap(), values, "{name}");
            assert_eq!(checkpoint.bytes(name).unwrap().len(), info.byte_size(), "{name}");
        };
        check("weight", Dtype::F32, &[2, 3], &[0.0, 1.0, 2.0, 3.0, 4.0, 5.0]);
        check("transposed", Dtype::F32, &[3, 2], &[0.0, 3.0, 1.0, 4.0, 2.0, 5.0]);
        check("corner", Dtype::F32, &[1, 2], &[3.0, 5.0]);
        check("row", Dtype::F32, &[3], &[3.0, 4.0, 5.0]);
        check("double", Dtype::F64, &[], &[0.1]);
        check("half", Dtype::F16, &[3], &[1.0, -2.0, 65504.0]);
        check("bfloat", Dtype::BF16, &[2], &[1.0, 3.140625]);
        check("long", Dtype::I64, &[2], &[-3.0, (1u64 << 40) as f64]);
        check("int", Dtype::I32, &[1], &[7.0]);
        check("short", Dtype::I16, &[1], &[-300.0]);
        check("char", Dtype::I8, &[1], &[-1.0]);
        check("byte", Dtype::U8, &[1], &[255.0]);
        check("bool", Dtype::Bool, &[2], &[1.0, 0.0]);
        check("empty", Dtype::F32, &[0, 4], &[]);
        assert_eq!(checkpoint.len(), 14);
        // The transpose of a view that is itself a transpose.
        assert_eq!(checkpoint.read_f32_transposed("transposed").unwrap(), [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]);
    }
    let hashes = [ZIP, ZIP64, LEGACY, NESTED].map(|file| open(file).unwrap().content_hash().unwrap());
    assert!(hashes.iter().all(|hash| *hash == hashes[0]), "{hashes:?}");
}

#[test]
fn a_file_on_disk_reads_the_same() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("pytorch_model.bin");
    std::fs::write(&path, ZIP).unwrap();
    let checkpoint = Checkpoint::open(folder.path()).unwrap();
    assert_eq!(checkpoint.path(), path);
    assert_eq!(checkpoint.content_hash().unwrap(), open(ZIP).unwrap().content_hash().unwrap());
}

#[test]
fn what_a_pickle_names_is_not_executed() {
    let error = open(EVIL).unwrap_err();
    assert!(
        matches!(&error, CheckpointError::ForbiddenGlobal { global, .. } if global == "posix.system"),
        "{error}"
    );
    check_error(Err::<(), _>(error), &["file.bin", "posix.system", "safetensors"]);
}

/// A file of the old format around a pickle of the object, without storages.
fn around(pickle: &[u8]) -> Vec<u8> {
    let magic =
        [&[0x80, 2, 0x8a, 10][..], &[0x6c, 0xfc, 0x9c, 0x46, 0xf9, 0x20, 0x6a, 0xa8, 0x50, 0x19], b"."]
            .concat();
    [&magic[..], b"\x80\x02M\xe9\x03.", b"\x80\x02}.", b"\x80\x02", pickle, b"\x80\x02]."].concat()
}

#[test]
fn broken_pickles_are_errors() {
    let deep = [vec![b']'; 200_000], vec![0x85; 200_000], b".".to_vec()].concat();
    let cases: &[(&[u8], &str)] = &[
        (b"cos\nsystem\n.", "os.system"),
        (b"c__builtin__\neval\n(X\x04\x00\x00\x001+1)tR.", "__builtin__.eval"),
        (b"\x8c\x02os\x8c\x06system\x93.", "os.system"),
        (b"ctorch\nSparseStorage\n.", "torch.SparseStorage"),
        (b"(ios\nsystem\n.", "opcode 0x69"),
        (b"N\x81.", "opcode 0x81"),
        (b"NR.", "operands"),
        (b"NNR.", "not a function"),
        (b"ccollections\nOrderedDict\nK\x01\x85R.", "not a list"),
        (b"ccollections\nOrderedDict\nN\x85R.", "not a list"),
        (b"]K\x01Nb.", "not a dictionary"),
        (b"}K\x01s.", "operands"),
        (b"(K\x01d.", "a key without a value"),
        (b"h\x05.", "memo 5"),
        (b"(.", "operands"),
        (b"t.", "operands"),
        (b"NQ.", "not a storage"),
        (b"X\xff\xff\xff\xff.", "truncated"),
        (b"\x8d\xff\xff\xff\xff\xff\xff\xff\xff.", "truncated"),
        (b"X\x01\x00\x00\x00\xff.", "UTF-8"),
        (b"ctorch", "line without end"),
        (b"N.", "not a state dict"),
        (b"}X\x01\x00\x00\x00aK\x01s.", "no tensors"),
        (&deep, "not a state dict"),
        (b"}X\x05\x00\x00\x00model}X\x05\x00\x00\x00model}X\x05\x00\x00\x00model}X\x05\x00\x00\x00model}X\x01\x00\x00\x00aNsssss.", "nested too deep"),
    ];
    for (pickle, part) in cases {
        check_error(open(&around(pickle)), &["file.bin", part]);
    }
    // A dictionary that holds itself under a wrapper's name.
    check_error(open(&around(b"}q\x00X\x05\x00\x00\x00modelh\x00s.")), &["nested too deep"]);
    assert!(open(&around(b"}.")).unwrap().is_empty());
}

/// A file of the old format with 4 stored f32 and one tensor `x`, this view of them.
fn viewed(offset: u8, shape: &[u8], strides: &[u8]) -> Vec<u8> {
    viewed_part(b"N", offset, shape, strides)
}

/// The same over a part of the storage, given as a pickle: none, or a key, the first element and how many.
fn viewed_part(part: &[u8], offset: u8, shape: &[u8], strides: &[u8]) -> Vec<u8> {
    let tuple = |items: &[u8]| {
        [b"(".to_vec(), items.iter().flat_map(|&i| [b'K', i]).collect(), b"t".to_vec()].concat()
    };
    let storage = [
        &b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x04"[..],
        part,
        b"tQ",
    ]
    .concat();
    let parts: [&[u8]; 9] = [
        b"}X\x01\x00\x00\x00xctorch._utils\n_rebuild_tensor_v2\n(",
        &storage,
        &[b'K', offset],
        &tuple(shape),
        &tuple(strides),
        b"\x89}",
        b"tR",
        b"s",
        b".",
    ];
    let mut file = around(&parts.concat());
    // In place of the empty list of keys: one key, then its count and elements.
    file.truncate(file.len() - 2);
    file.extend(b"]X\x01\x00\x00\x000a.");
    file.extend(4u64.to_le_bytes());
    file.extend([1f32, 2.0, 3.0, 4.0].map(f32::to_le_bytes).concat());
    file
}

#[test]
fn views_stay_inside_their_storage() {
    let values = |offset, shape: &[u8], strides: &[u8]| {
        open(&viewed(offset, shape, strides)).unwrap().read_f32("x").unwrap()
    };
    assert_eq!(values(0, &[4], &[1]), [1.0, 2.0, 3.0, 4.0]);
    assert_eq!(values(1, &[3], &[1]), [2.0, 3.0, 4.0]);
    assert_eq!(values(0, &[2, 2], &[1, 2]), [1.0, 3.0, 2.0, 4.0]);
    assert_eq!(values(1, &[2], &[2]), [2.0, 4.0]);
    assert_eq!(values(3, &[1, 1], &[200, 100]), [4.0]);
    assert_eq!(values(4, &[0], &[1]), [0f32; 0]);
    for (offset, shape, strides, part) in [
        (1, &[4][..], &[1][..], "beyond"),
        (0, &[2, 2], &[3, 1], "beyond"),
        (0, &[3], &[2], "beyond"),
        (5, &[0], &[1], "beyond"),
        (4, &[], &[], "beyond"),
        (0, &[2], &[1, 1], "strides"),
        (0, &[100, 100], &[0, 0], "contiguous()"),
        (0, &[200; 10], &[0; 10], "overflows"),
        (0, &[1; 17], &[1; 17], "17 dimensions"),
    ] {
        check_error(open(&viewed(offset, shape, strides)), &["file.bin", part]);
    }
}

#[test]
fn a_part_of_a_storage_is_a_storage() {
    let part = b"(X\x01\x00\x00\x00vK\x01K\x02t";
    let checkpoint = open(&viewed_part(part, 0, &[2], &[1])).unwrap();
    assert_eq!(checkpoint.read_f32("x").unwrap(), [2.0, 3.0]);
    assert_eq!(open(&viewed_part(part, 1, &[1], &[1])).unwrap().read_f32("x").unwrap(), [3.0]);
    check_error(open(&viewed_part(part, 0, &[3], &[1])), &["'x'", "beyond the 2 elements"]);
    check_error(open(&viewed_part(b"(NK\x03K\x02t", 0, &[1], &[1])), &["'x'", "outside the storage"]);
    check_error(open(&viewed_part(b"K\x01", 0, &[1], &[1])), &["not a storage"]);
}

#[test]
fn the_extra_state_of_a_module_is_not_a_weight() {
    let with = |key: &[u8; 14]| {
        let file = viewed(0, &[4], &[1]);
        let at = file.windows(4).position(|part| part == b"tRs.").unwrap();
        // A list of the tensor under another key.
        let extra = [b"tRq\x05sX\x0e\x00\x00\x00", &key[..], b"]h\x05as."].concat();
        open(&[&file[..at], &extra, &file[at + 4..]].concat())
    };
    let checkpoint = with(b"m._extra_state").unwrap();
    assert_eq!(checkpoint.names().collect::<Vec<_>>(), ["x"]);
    check_error(with(b"m.other_states"), &["'m.other_states'", "a collection of tensors"]);
}

#[test]
fn what_a_pickle_repeats_is_counted() {
    // A list of 2¹⁰ pairs, made a dictionary again and again.
    let pairs = [&b"]q\x00("[..], &b"NN\x86".repeat(1 << 10), b"e0"].concat();
    let again = |n: usize| [&pairs[..], &b"ccollections\nOrderedDict\nh\x00\x85R0".repeat(n), b"}."].concat();
    assert!(open(&around(&again(8))).unwrap().is_empty());
    check_error(open(&around(&again(1 << 12))), &["four million"]);
    // A key of megabytes that many storages share.
    let key = [&b"X\x00\x00\x10\x00"[..], &vec![b'k'; 1 << 20]].concat();
    let storage =
        [&b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\n"[..], &key, b"X\x03\x00\x00\x00cpuK\x01tQ."]
            .concat();
    check_error(open(&around(&storage)), &["not a storage"]);
}

#[test]
fn broken_archives_are_errors() {
    check_error(open(&ZIP[..ZIP.len() - 1]), &["directory", "truncated"]);
    check_error(open(&ZIP[..4]), &["directory"]);
    check_error(open(&LEGACY[..LEGACY.len() - 1]), &["truncated"]);
    let replace = |from: &[u8], to: &[u8]| {
        let mut file = ZIP.to_vec();
        let found: Vec<usize> =
            (0..file.len() - from.len()).filter(|&i| file[i..].starts_with(from)).collect();
        assert!(!found.is_empty());
        for i in found {
            file[i..i + to.len()].copy_from_slice(to);
        }
        file
    };
    check_error(open(&replace(b"archive/data/3", b"archive/data/x")), &["'bfloat'", "storage is missing"]);
    check_error(open(&replace(b"archive/data/3", b"archive/data/4")), &["two records"]);
    check_error(open(&replace(b"data.pkl", b"data.txt")), &["data.pkl"]);
    check_error(open(&replace(b"little", b"biggie")), &["big-endian"]);
    // The method of the first directory entry: deflated.
    let mut file = ZIP.to_vec();
    let entry = (0..file.len()).find(|&i| file[i..].starts_with(b"PK\x01\x02")).unwrap();
    file[entry + 10] = 8;
    check_error(open(&file), &["compressed"]);
    file[entry + 8] |= 1;
    check_error(open(&file), &["encrypted"]);
    check_error(open(b"\x80\x02N."), &["neither"]);
}

#[test]
fn scalars_beside_a_wrapped_state_dict_are_not_tensors() {
    let checkpoint = open(NESTED).unwrap();
    assert!(!checkpoint.contains("epoch") && !checkpoint.contains("optimizer"));
}
