package blobstore

import (
	"errors"
	"net/http"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore/policy"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/runtime"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/tracing"
)

const tracerName = "cats.example/signer/internal/blobstore"

// spans is a policy before the retries that has each call be a span, named like the
// operation in the metrics. azblob starts none itself (1.8.3), and without one around
// them azcore makes none of the tries either.
type spans struct{ tracer tracing.Tracer }

// Do implements [policy.Policy].
func (s spans) Do(req *policy.Request) (*http.Response, error) {
	ctx, end := runtime.StartSpan(req.Raw().Context(), operationOf(req.Raw().Context()).name, s.tracer, nil)
	resp, err := req.WithContext(ctx).Next()
	var refused error
	if err != nil {
		refused = withoutURL(err)
	} else if resp.StatusCode >= http.StatusBadRequest {
		refused = errors.New(resp.Status)
		if code := resp.Header.Get("X-Ms-Error-Code"); code != "" {
			s.tracer.SpanFromContext(ctx).SetAttributes(tracing.Attribute{Key: "error.type", Value: code})
		}
	}
	end(refused)
	return resp, err
}
