// The claims that a host adds to a token, and the names that it may not use.

package jws

import (
	"encoding/json"
	"errors"
	"maps"

	"github.com/apitoken-go/apitoken/internal/fault"
	"github.com/apitoken-go/apitoken/internal/hook"
)

// maxHostBytes bounds them: a token travels with each request.
const maxHostBytes = 4 << 10

// HostClaims is the JSON object of a host's own claims, which v marshals to; nil: there are none. InvalidRequest: they cannot stand in
// a token. Unavailable: v's own MarshalJSON panicked.
func HostClaims(v any) ([]byte, error) {
	if v == nil {
		return nil, nil
	}
	doc, err := marshalHosts(v)
	switch {
	case errors.Is(err, hook.ErrPanicked):
		return nil, fault.NoAnswer(err, "marshal the claims")
	case err != nil:
		return nil, &fault.Error{Code: fault.InvalidRequest, Detail: "claims do not marshal", Cause: err}
	}
	var reserved reservedError
	err = checkPrivate(doc)
	if errors.As(err, &reserved) { // a struct for claims has members that we set ourselves: they may be there if they are empty
		if doc, err = withoutEmpty(doc); err == nil {
			err = checkPrivate(doc)
		}
	}
	switch {
	case string(doc) == "null" || string(doc) == "{}":
		return nil, nil
	case len(doc) > maxHostBytes:
		return nil, fault.Fail(fault.InvalidRequest, "claims take %d bytes, at most %d are allowed", len(doc), maxHostBytes)
	case errors.As(err, &reserved):
		return nil, fault.Fail(fault.InvalidRequest, "claims: the name %s is reserved, this package sets it from the other fields of the request: leave it empty", string(reserved))
	case err != nil:
		return nil, &fault.Error{Code: fault.InvalidRequest, Detail: "claims", Cause: err}
	}
	return doc, nil
}

// marshalHosts marshals a value of the host, whose MarshalJSON may panic.
func marshalHosts(v any) (doc []byte, err error) {
	defer func() {
		if p := recover(); p != nil {
			err = hook.Panicked(p)
		}
	}()
	return json.Marshal(v)
}

// withoutEmpty is the JSON object doc without the reserved members that are empty (null, "", 0, [] or {}), as a struct for claims has
// them. What is left still needs checkPrivate.
func withoutEmpty(doc []byte) ([]byte, error) {
	if err := CheckJSON(doc); err != nil { // a member that comes twice must not be merged here
		return nil, err
	}
	var members map[string]json.RawMessage
	if err := json.Unmarshal(doc, &members); err != nil {
		return nil, err
	}
	maps.DeleteFunc(members, func(name string, v json.RawMessage) bool {
		switch string(v) {
		case "null", `""`, "0", "[]", "{}":
			return registered(name)
		}
		return false
	})
	return json.Marshal(members)
}

// reservedError is the name that a host's own claims may not have.
type reservedError string

func (e reservedError) Error() string { return "jws: the name " + string(e) + " is reserved" }

// checkPrivate reports why the JSON object doc cannot be a host's own claims: a reservedError among other reasons.
func checkPrivate(doc []byte) error {
	p := scanner{s: string(doc)}
	n := 0
	err := p.object(func(name string) error {
		if registered(name) {
			return reservedError(name)
		}
		if n++; n > maxPrivate {
			return errors.New("jws: too many members")
		}
		return p.skip(1)
	})
	if err != nil {
		return err
	}
	return p.end()
}
