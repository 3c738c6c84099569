//! AEGIS-256 and AEGIS-128L as draft-irtf-cfrg-aegis-aead writes them down, over the round function
//! of the crate `aes`: slow, plain, and nothing in common with what it is held against. Tests only.

use aes::hazmat::cipher_round;

type Block = [u8; 16];

const C0: Block = [
    0x00, 0x01, 0x01, 0x02, 0x03, 0x05, 0x08, 0x0d, 0x15, 0x22, 0x37, 0x59, 0x90, 0xe9, 0x79, 0x62,
];
const C1: Block = [
    0xdb, 0x3d, 0x18, 0x55, 0x6d, 0xc2, 0x2f, 0xf1, 0x20, 0x11, 0x31, 0x42, 0x73, 0xb5, 0x28, 0xdd,
];

/// Which way the text is taken.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Work {
    Seal,
    Open,
}

fn xor(a: Block, b: Block) -> Block {
    std::array::from_fn(|i| a[i] ^ b[i])
}

fn and(a: Block, b: Block) -> Block {
    std::array::from_fn(|i| a[i] & b[i])
}

fn round(block: Block, key: Block) -> Block {
    let mut block = block.into();
    cipher_round(&mut block, &key.into());
    block.into()
}

fn block(bytes: &[u8]) -> Block {
    let mut block = [0; 16];
    block[..bytes.len()].copy_from_slice(bytes);
    block
}

fn lengths(aad: &[u8], text: &[u8]) -> Block {
    let bits = |bytes: &[u8]| (bytes.len() as u64 * 8).to_le_bytes();
    block(&[bits(aad), bits(text)].concat())
}

/// The text that the state takes in: what is sealed, or what came of opening.
fn absorbed(piece: &[u8], out: &[u8], work: Work) -> Vec<u8> {
    if work == Work::Seal { piece.to_vec() } else { out.to_vec() }
}

/// Section 4 of the draft: the text sealed or opened, and the tag of 128 bits.
pub(crate) fn aegis_256(
    key: &[u8; 32],
    nonce: &[u8; 32],
    aad: &[u8],
    text: &[u8],
    work: Work,
) -> (Vec<u8>, Block) {
    fn update(s: &mut [Block; 6], m: Block) {
        let old = *s;
        for i in 0..6 {
            s[i] = round(old[(i + 5) % 6], if i == 0 { xor(old[0], m) } else { old[i] });
        }
    }
    let (k0, k1) = (block(&key[..16]), block(&key[16..]));
    let (n0, n1) = (block(&nonce[..16]), block(&nonce[16..]));
    let mut s = [xor(k0, n0), xor(k1, n1), C1, C0, xor(k0, C0), xor(k1, C1)];
    for _ in 0..4 {
        for m in [k0, k1, xor(k0, n0), xor(k1, n1)] {
            update(&mut s, m);
        }
    }
    for piece in aad.chunks(16) {
        update(&mut s, block(piece));
    }
    let mut result = Vec::new();
    for piece in text.chunks(16) {
        let z = xor(xor(s[1], s[4]), xor(s[5], and(s[2], s[3])));
        let out = &xor(block(piece), z)[..piece.len()];
        update(&mut s, block(&absorbed(piece, out, work)));
        result.extend(out);
    }
    let t = xor(s[3], lengths(aad, text));
    for _ in 0..7 {
        update(&mut s, t);
    }
    (result, s.into_iter().fold([0; 16], xor))
}

/// Section 3 of the draft: the text sealed or opened, and the tag of 128 bits.
pub(crate) fn aegis_128l(
    key: &[u8; 16],
    nonce: &[u8; 16],
    aad: &[u8],
    text: &[u8],
    work: Work,
) -> (Vec<u8>, Block) {
    fn update(s: &mut [Block; 8], m: [Block; 2]) {
        let old = *s;
        for i in 0..8 {
            let taken = if i % 4 == 0 { xor(old[i], m[i / 4]) } else { old[i] };
            s[i] = round(old[(i + 7) % 8], taken);
        }
    }
    fn halves(bytes: &[u8]) -> [Block; 2] {
        let (first, second) = bytes.split_at(bytes.len().min(16));
        [block(first), block(second)]
    }
    let kn = xor(*key, *nonce);
    let mut s = [kn, C1, C0, C1, kn, xor(*key, C0), xor(*key, C1), xor(*key, C0)];
    for _ in 0..10 {
        update(&mut s, [*nonce, *key]);
    }
    for piece in aad.chunks(32) {
        update(&mut s, halves(piece));
    }
    let mut result = Vec::new();
    for piece in text.chunks(32) {
        let [t0, t1] = halves(piece);
        let z0 = xor(xor(s[6], s[1]), and(s[2], s[3]));
        let z1 = xor(xor(s[2], s[5]), and(s[6], s[7]));
        let out = &[xor(t0, z0), xor(t1, z1)].concat()[..piece.len()];
        update(&mut s, halves(&absorbed(piece, out, work)));
        result.extend(out);
    }
    let t = xor(s[2], lengths(aad, text));
    for _ in 0..7 {
        update(&mut s, [t, t]);
    }
    (result, s[..7].iter().copied().fold([0; 16], xor))
}
