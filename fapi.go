// What Config.FAPI asks for beyond the rest: the FAPI 2.0 Security Profile as one switch.

package apitoken

import (
	"slices"

	"github.com/apitoken-go/apitoken/internal/jws"
)

// What the FAPI 2.0 Security Profile asks of a service and of a validator beyond what they do anyway.

// ProofAlgorithms are the JWA names of the algorithms by which others may sign for v: DPoP proofs (RFC 9449 §7.1). The slice is
// the caller's own.
func (v *JWTValidator) ProofAlgorithms() []string { return slices.Clone(v.cfg.algorithms()) }

// ProofAlgorithms are the JWA names of the algorithms by which others may sign for s: DPoP proofs, clients' assertions. The
// slice is the caller's own.
func (s *Service) ProofAlgorithms() []string { return s.valid.ProofAlgorithms() }

func (v *Validation) algorithms() []string {
	if v.FAPI {
		return jws.FAPIAlgs
	}
	return jws.PublicAlgs
}

// checkFAPI refuses what the profile does not allow, and sets what it implies.
func (c *Config) checkFAPI() error {
	if !c.FAPI {
		return nil
	}
	c.Validation.FAPI = true
	if !slices.Contains(jws.FAPIAlgs, c.Algorithm) {
		return wrong("Algorithm", "FAPI allows PS256, ES256 and EdDSA (FAPI 2.0 §5.4.1), not %s", c.Algorithm)
	}
	for audience, alg := range c.AudienceAlgorithms {
		if !slices.Contains(jws.FAPIAlgs, alg) {
			return wrong("AudienceAlgorithms", "%q: FAPI allows PS256, ES256 and EdDSA (FAPI 2.0 §5.4.1), not %s", audience, alg)
		}
	}
	if c.Refresh.RotateConfidential {
		return wrong("Refresh.RotateConfidential", "FAPI has no rotation of refresh tokens (FAPI 2.0 §5.3.2.1)")
	}
	return nil
}

// checkFAPI is for a service's validator and for one alone.
func (v *Validation) checkFAPI(field string) error {
	if v.FAPI && v.Skew != 0 && v.Skew < defaultAhead {
		return wrong(field+".Skew", "FAPI takes what was signed up to %s in the future (FAPI 2.0 §5.3.2.1)", defaultAhead)
	}
	return nil
}

// constrained refuses an access token that nothing binds to its holder (FAPI 2.0 §5.3.2.1).
func (c *Config) constrained(binding string) error {
	if c.FAPI && binding == "" {
		return fail(ErrInvalidRequest, "FAPI: an access token is bound to a DPoP key or a certificate; see Request.Binding")
	}
	return nil
}

// allows says what FAPI asks of an access token at an API: its algorithm, and that it is bound (FAPI 2.0 §5.3.4, §5.4.1).
func (v *Validation) allows(p *jws.Token) *Error {
	switch {
	case !v.FAPI:
		return nil
	case !slices.Contains(jws.FAPIAlgs, p.Header.Alg):
		return fail(ErrInvalidToken, "FAPI: signed by another algorithm than PS256, ES256 and EdDSA")
	case p.Claims.Binding == "":
		return fail(ErrInvalidToken, "FAPI: bound to no key and no certificate")
	}
	return nil
}
