//! [`TokenTree`]: the tokens of all beams, those that beams have in common once.

/// A place in a [`TokenTree`]: the tokens on the way to it from the root.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct NodeId(usize);

/// A tree that only grows: 16 bytes for each beam of each step.
#[derive(Debug, Clone, Default)]
pub(super) struct TokenTree {
    /// Node i + 1: the node before it, and its token.
    nodes: Vec<(NodeId, u32)>,
}

impl TokenTree {
    /// Where no token has been generated.
    pub(super) const ROOT: NodeId = NodeId(0);

    /// Adds a token after `parent`.
    pub(super) fn push(&mut self, parent: NodeId, token_id: u32) -> NodeId {
        self.nodes.push((parent, token_id));
        NodeId(self.nodes.len())
    }

    /// The tokens up to `node`, in order.
    pub(super) fn path(&self, mut node: NodeId) -> Vec<u32> {
        let mut token_ids = Vec::new();
        while node != Self::ROOT {
            let (parent, token_id) = self.nodes[node.0 - 1];
            token_ids.push(token_id);
            node = parent;
        }
        token_ids.reverse();
        token_ids
    }
}
