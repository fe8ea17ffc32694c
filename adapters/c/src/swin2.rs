//! Swin v2's continuous position bias: its table and the gradient of its network.

use posenc::Device;
use posenc::bias::{LogCoordinates, Swin2Bias, Swin2GradOut, Swin2Plan, Swin2Weights, swin2_logit_scale};

use crate::header::header;
use crate::memory::{Scope, Space};
use crate::{Failure, PosencBuffer, PosencGpu, PosencStatus, unknown};

header! {{}
    kinds LogCoordinates {
        POSENC_LOG_COORDINATES_RELATIVE = 0 => Relative: "Coordinates of Swin v2's network: \
            `sign(d) * log2(1 + 8 * |d| / (size - 1)) / log2(8)` of a distance `d = query - key` on an axis.",
        POSENC_LOG_COORDINATES_ABSOLUTE = 1 => Absolute: "`sign(d) * ln(1 + |d|)`: timm's Swin v2 CR and MaxViT RW",
    }

    /// Swin v2's continuous position bias: a network of log-spaced coordinates writes the table of a window.
    versioned struct PosencSwin2Spec {
        window: [u64; 2] => "rows and columns",
        pretrained: [u64; 2] => "rows and columns of the pretraining window, the `size` of \
            `POSENC_LOG_COORDINATES_RELATIVE`; 0: `window`",
        coordinates: u32 => "`POSENC_LOG_COORDINATES_...`",
        limit: f32 => "the table is `limit * sigmoid(z)` of the network's output: 16 in Swin v2; 0: `z` itself",
        hidden: u64 => "width of the hidden layer: 512 in Swin v2",
        heads: u64 => "outputs of the network",
    }
    /// The network's weights or their gradients, as `torch.nn.Linear` stores weights.
    struct PosencSwin2Weights {
        w1: PosencBuffer => "`[hidden, 2]`: of rows and columns",
        b1: PosencBuffer => "`[hidden]`",
        w2: PosencBuffer => "`[heads, hidden]`",
        b2: PosencBuffer => "`[heads]`; none in Swin v2",
    }
    /// One call that writes a table.
    versioned struct PosencSwin2Call {
        weights: PosencSwin2Weights => "the weights, of the plan's element type",
        table: PosencBuffer => "`[entries, heads]` of f32, written: numbers of a term that `posenc_term_swin` fills in",
    }
    /// One call for the gradient of the weights.
    versioned struct PosencSwin2GradCall {
        weights: PosencSwin2Weights => "the weights, of the plan's element type",
        table_grad: PosencBuffer => "`[entries, heads]` of f32: the gradient of the table",
        out: PosencSwin2Weights => "f32, written; without `b2` where it is not wanted",
    }

    /// Swin v2's network on a device, for weights of one element type. Its calls follow one another in the stream.
    plan PosencSwin2(Swin2Plan, Swin2Bias);
    /// Makes a plan: uploads the coordinates and loads the kernels for `element`.
    new posenc_swin2_new(spec: PosencSwin2Spec) -> PosencSwin2 as Swin2Plan::new where bias = spec.bias()?, |gpu| Swin2Plan::new(gpu, &bias);
    on posenc_swin2_on(swin2: PosencSwin2) as Swin2Plan::on;
    free posenc_swin2_free(swin2: PosencSwin2);
    /// Writes the table, in one kernel.
    verb posenc_swin2_write(swin2: PosencSwin2, call: PosencSwin2Call) as Swin2Plan::write where cpu = write, |plan, scope| {
        plan.write(call.weights.get(scope)?, call.table.write(scope, "table")?)
    };
    /// Writes the gradient of the weights from that of the table, in two kernels.
    verb posenc_swin2_grad(swin2: PosencSwin2, call: PosencSwin2GradCall) as Swin2Plan::grad where cpu = grad, |plan, scope| {
        let (weights, table_grad) = (call.weights.get(scope)?, call.table_grad.read(scope, "table_grad")?);
        plan.grad(weights, table_grad, call.out.grad_out(scope)?)
    };
    /// Swin v2's factor of cosine attention, `exp(min(logit_scale, ln 100))`: one of `scales` of a softmax call.
    fn posenc_swin2_logit_scale(logit_scale: f32) -> f32 as bias::swin2_logit_scale {
        swin2_logit_scale(logit_scale)
    }
}

impl PosencSwin2Spec {
    fn bias(&self) -> Result<Swin2Bias, Failure> {
        let pair = |sizes: [u64; 2]| sizes.map(|size| size as usize);
        let pretrained = (self.pretrained != [0, 0]).then(|| pair(self.pretrained));
        Ok(Swin2Bias {
            window: pair(self.window),
            coordinates: match self.coordinates {
                POSENC_LOG_COORDINATES_RELATIVE => LogCoordinates::Relative { pretrained },
                POSENC_LOG_COORDINATES_ABSOLUTE => LogCoordinates::Absolute,
                other => return Err(unknown("coordinates", other)),
            },
            hidden: self.hidden as usize,
            heads: self.heads as usize,
            limit: (self.limit != 0.0).then_some(self.limit),
        })
    }
}

impl PosencSwin2Weights {
    pub(crate) fn get<'a, T: 'a, M: Space>(&self, scope: &Scope<'a, M>) -> Result<Swin2Weights<'a, T, M>, Failure> {
        Ok(Swin2Weights {
            w1: self.w1.read(scope, "w1")?,
            b1: self.b1.read(scope, "b1")?,
            w2: self.w2.read(scope, "w2")?,
            b2: self.b2.read_some(scope, "b2")?,
        })
    }

    fn grad_out<'a>(&self, scope: &Scope<'a, Device>) -> Result<Swin2GradOut<'a>, Failure> {
        Ok(Swin2GradOut {
            w1: self.w1.write(scope, "w1_grad")?,
            b1: self.b1.write(scope, "b1_grad")?,
            w2: self.w2.write(scope, "w2_grad")?,
            b2: self.b2.write_some(scope, "b2_grad")?,
        })
    }
}
