//! Several links between two nodes: watched, chosen, failed over.

use super::*;
use crate::world::*;
