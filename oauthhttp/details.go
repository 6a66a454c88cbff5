package oauthhttp

import (
	"context"
	"encoding/json"
	"errors"
	"slices"

	"github.com/apitoken-go/apitoken"
)

// Detail is one element of authorization_details (RFC 9396 §2).
type Detail struct {
	Type string
	JSON json.RawMessage // the whole object, its type included
}

// Details says which authorization_details are taken. They go into the token as the claim of that name, and into the
// answers of introspection and the token endpoint.
type Details struct {
	Types []string // announced in the metadata; others are refused
	// Check is asked at each request that brings details, before a user is. It returns them as they should be: the same,
	// narrowed or completed (RFC 9396 §7.1). An error refuses them, unless it is apitoken.ErrUnavailable.
	Check func(ctx context.Context, c apitoken.Client, asked []Detail) ([]Detail, error)
}

const (
	maxDetails    = 32
	detailsMember = "authorization_details"
)

// checkDetails asks the host about details.
func (h *Handler) checkDetails(ctx context.Context, c apitoken.Client, asked []Detail) ([]Detail, error) {
	if len(asked) == 0 {
		return nil, nil
	}
	if h.o.Details == nil {
		return nil, errDetails
	}
	for _, d := range asked {
		if !slices.Contains(h.o.Details.Types, d.Type) {
			return nil, errDetails
		}
	}
	out, err := askHost(ctx, h, "Details.Check", func(ctx context.Context) ([]Detail, error) { return h.o.Details.Check(ctx, c, asked) })
	if err == nil || errors.Is(err, apitoken.ErrUnavailable) {
		return out, err
	}
	no := *errDetails
	no.cause = err
	return nil, &no
}

// withDetails adds details to the host's own claims.
func withDetails(claims any, details []Detail) (any, error) {
	if len(details) == 0 {
		return claims, nil
	}
	all := map[string]json.RawMessage{}
	if claims != nil {
		raw, err := json.Marshal(claims)
		if err == nil {
			err = json.Unmarshal(raw, &all)
		}
		if err != nil {
			return nil, &apitoken.Error{Code: apitoken.ErrInvalidRequest, Detail: "claims are no JSON object", Cause: err}
		}
		if all == nil {
			all = map[string]json.RawMessage{}
		}
	}
	if _, ok := all[detailsMember]; ok {
		return nil, &apitoken.Error{Code: apitoken.ErrInvalidRequest, Detail: "the host's claims hold authorization_details"}
	}
	raw, err := marshalDetails(details)
	if err != nil {
		return nil, err
	}
	all[detailsMember] = raw
	return all, nil
}

func marshalDetails(details []Detail) (json.RawMessage, error) {
	list := make([]json.RawMessage, len(details))
	for i, d := range details {
		list[i] = d.JSON
	}
	raw, err := json.Marshal(list)
	if err != nil {
		return nil, errors.Join(errDetails, err)
	}
	return raw, nil
}

// detailsOf are the details that a token carries.
func detailsOf(claims any) json.RawMessage {
	raw, ok := claims.(json.RawMessage)
	if !ok {
		return nil
	}
	var c struct {
		Details json.RawMessage `json:"authorization_details"`
	}
	if err := json.Unmarshal(raw, &c); err != nil {
		return nil
	}
	return c.Details
}
