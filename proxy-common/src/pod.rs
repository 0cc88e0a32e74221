//! Which layouts may userspace copy to and from the kernel as bytes?

use aya::Pod;

use crate::{
    Address, Backend, Flow, FlowKey, Frontend, FrontendKey, Interface, LocalAddress, Record,
    Settings, SourceRangeKey,
};

/// The layouts have no padding, which their sizes show where they are declared, and any bytes are a value.
macro_rules! pod {
    ($($layout:ty),* $(,)?) => {
        $(
            // SAFETY: zerocopy derives `FromBytes` for it, and its asserted size is that of its fields.
            unsafe impl Pod for $layout {}
        )*
    };
}

pod!(
    Address<1>,
    Address<4>,
    Backend<1>,
    Backend<4>,
    Flow<1>,
    Flow<4>,
    FlowKey<1>,
    FlowKey<4>,
    Frontend,
    FrontendKey<1>,
    FrontendKey<4>,
    Interface,
    LocalAddress,
    Record,
    Settings<1>,
    Settings<4>,
    SourceRangeKey<1>,
    SourceRangeKey<4>,
);
