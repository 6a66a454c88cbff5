// The types of github.com/golang-jwt/jwt/v5, filled from tokens that were verified here, for programs that use it already.

package jws

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"strings"

	"github.com/golang-jwt/jwt/v5"

	"github.com/apitoken-go/apitoken/internal/fault"
)

// RegisteredJSON is the JSON object of c and of private, an object of claims under other names or nil.
func RegisteredJSON(c jwt.RegisteredClaims, private []byte) ([]byte, error) {
	doc, err := json.Marshal(c)
	if err != nil || len(private) == 0 {
		return doc, err
	}
	return append(append(doc[:len(doc)-1], ','), private[1:]...), nil
}

// DecodeV5 decodes doc into claims, and returns what is filled: a map that was nil is another one then.
func DecodeV5(doc []byte, claims jwt.Claims) (jwt.Claims, error) {
	if m, ok := claims.(jwt.MapClaims); ok {
		err := json.Unmarshal(doc, &m)
		return m, err
	}
	return claims, json.Unmarshal(doc, claims)
}

// SplitV5 fills t from a token that was verified, and returns its payload.
func SplitV5(token string, t *jwt.Token) ([]byte, error) {
	var parts [3][]byte
	for i, text := range strings.SplitN(token, ".", 3) {
		var err error
		if parts[i], err = base64.RawURLEncoding.DecodeString(text); err != nil {
			return nil, err
		}
	}
	if err := json.Unmarshal(parts[0], &t.Header); err != nil {
		return nil, err
	}
	alg, _ := t.Header["alg"].(string)
	if alg == "Ed25519" { // RFC 9864's name of what jwt/v5 calls EdDSA
		alg = "EdDSA"
	}
	t.Method, t.Signature = jwt.GetSigningMethod(alg), parts[2]
	return parts[1], nil
}

// V5Error is err as an error of jwt/v5 too, to errors.Is: of class, or where that is nil of what jwt/v5 would have answered. It shows
// what err shows.
func V5Error(err, class error) error {
	switch {
	case class != nil:
	case errors.Is(err, fault.Expired):
		class = errors.Join(jwt.ErrTokenInvalidClaims, jwt.ErrTokenExpired)
	case errors.Is(err, fault.Revoked):
		class = jwt.ErrTokenInvalidClaims
	default:
		class = jwt.ErrTokenUnverifiable
	}
	return &v5Error{err, class}
}

type v5Error struct{ err, class error }

func (e *v5Error) Error() string                 { return e.err.Error() }
func (e *v5Error) Unwrap() []error               { return []error{e.err, e.class} }
func (e *v5Error) LogValue() slog.Value          { return slog.AnyValue(e.err).Resolve() }
func (e *v5Error) Format(f fmt.State, verb rune) { fmt.Fprintf(f, fmt.FormatString(f, verb), e.err) }
