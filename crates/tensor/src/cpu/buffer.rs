//! Memory for weights, K and V and activations: zeroed, aligned to pages, on huge pages where there are any.

use std::marker::PhantomData;
use std::ops::{Deref, DerefMut};

use bytemuck::Pod;
use memmap2::MmapMut;

/// A fixed number of plain values, zero at first. What is never touched takes no memory.
#[derive(Debug)]
pub struct Buffer<T> {
    map: Option<MmapMut>,
    len: usize,
    of: PhantomData<T>,
}

impl<T: Pod> Buffer<T> {
    /// # Panics
    /// Where the operating system has no memory to give, as a vector does.
    pub fn zeroed(len: usize) -> Self {
        let bytes = len.checked_mul(size_of::<T>()).expect("a buffer fits the address space");
        let map = (bytes > 0).then(|| {
            let map = MmapMut::map_anon(bytes).expect("the operating system gives memory");
            // Streaming through small pages stops the prefetchers at each; without huge ones it is only slower.
            #[cfg(target_os = "linux")]
            let _ = map.advise(memmap2::Advice::HugePage);
            map
        });
        Self { map, len, of: PhantomData }
    }

    /// Zeroed and at least this long: keeps the memory where it is long enough, with what is in it.
    pub fn grow(&mut self, len: usize) {
        if self.len < len {
            *self = Self::zeroed(len);
        }
    }
}

impl<T: Pod> Default for Buffer<T> {
    fn default() -> Self {
        Self::zeroed(0)
    }
}

impl<T: Pod> Deref for Buffer<T> {
    type Target = [T];
    fn deref(&self) -> &[T] {
        match &self.map {
            Some(map) => &bytemuck::cast_slice(&map[..self.len * size_of::<T>()])[..self.len],
            None => &[],
        }
    }
}

impl<T: Pod> DerefMut for Buffer<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        match &mut self.map {
            Some(map) => bytemuck::cast_slice_mut(&mut map[..self.len * size_of::<T>()]),
            None => &mut [],
        }
    }
}

/// A buffer that the tasks of one pass share: each writes its own part.
#[derive(Clone, Copy)]
pub(super) struct Shared<'a, T> {
    start: *mut T,
    len: usize,
    of: PhantomData<&'a mut [T]>,
}
// SAFETY: tasks write disjoint parts, which `slice` and `at` ask for.
unsafe impl<T: Send> Sync for Shared<'_, T> {}
// SAFETY: as above.
unsafe impl<T: Send> Send for Shared<'_, T> {}

impl<'a, T> Shared<'a, T> {
    pub fn new(buffer: &'a mut [T]) -> Self {
        Self { start: buffer.as_mut_ptr(), len: buffer.len(), of: PhantomData }
    }

    /// Where `len` values begin that lie in the buffer.
    pub fn pointer(&self, at: usize, len: usize) -> *mut T {
        assert!(at <= self.len && len <= self.len - at, "a task's part lies in the buffer");
        self.start.wrapping_add(at)
    }

    /// # Safety
    /// No two live slices of one pass may overlap.
    pub unsafe fn slice(&self, at: usize, len: usize) -> &'a mut [T] {
        // SAFETY: in bounds as `pointer` checks, disjoint by the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.pointer(at, len), len) }
    }
}

/// Numbers of one of two types.
#[derive(Debug)]
pub enum NumberBuffer {
    F32(Buffer<f32>),
    Bf16(Buffer<u16>),
}

impl PartialEq for NumberBuffer {
    /// The same bits.
    fn eq(&self, other: &Self) -> bool {
        self.dtype() == other.dtype() && self.bytes() == other.bytes()
    }
}

impl NumberBuffer {
    pub fn zeroed(dtype: crate::DType, len: usize) -> Self {
        match dtype {
            crate::DType::F32 => Self::F32(Buffer::zeroed(len)),
            crate::DType::Bf16 => Self::Bf16(Buffer::zeroed(len)),
        }
    }

    pub fn grow(&mut self, len: usize) {
        match self {
            Self::F32(buffer) => buffer.grow(len),
            Self::Bf16(buffer) => buffer.grow(len),
        }
    }

    pub fn bytes(&self) -> &[u8] {
        match self {
            Self::F32(buffer) => bytemuck::cast_slice(buffer),
            Self::Bf16(buffer) => bytemuck::cast_slice(buffer),
        }
    }

    pub fn bytes_mut(&mut self) -> &mut [u8] {
        match self {
            Self::F32(buffer) => bytemuck::cast_slice_mut(buffer),
            Self::Bf16(buffer) => bytemuck::cast_slice_mut(buffer),
        }
    }

    pub fn dtype(&self) -> crate::DType {
        match self {
            Self::F32(_) => crate::DType::F32,
            Self::Bf16(_) => crate::DType::Bf16,
        }
    }

    pub fn numbers(&self) -> super::Numbers<'_> {
        match self {
            Self::F32(buffer) => super::Numbers::F32(buffer),
            Self::Bf16(buffer) => super::Numbers::Bf16(buffer),
        }
    }

    pub(super) fn shared(&mut self) -> SharedNumbers<'_> {
        match self {
            Self::F32(buffer) => SharedNumbers::F32(Shared::new(buffer)),
            Self::Bf16(buffer) => SharedNumbers::Bf16(Shared::new(buffer)),
        }
    }
}

/// As `Shared`, of one of two types.
#[derive(Clone, Copy)]
pub(super) enum SharedNumbers<'a> {
    F32(Shared<'a, f32>),
    Bf16(Shared<'a, u16>),
}
