package oauthhttp

import (
	"time"
)

// fapiMethods are how clients prove who they are where apitoken.Config.FAPI is set (FAPI 2.0 §5.3.2.1).
var fapiMethods = []string{"private_key_jwt", "tls_client_auth", "self_signed_tls_client_auth"}

const (
	fapiCode   = time.Minute      // the most of a code's life (FAPI 2.0 §5.3.2.2)
	fapiPushed = 10 * time.Minute // what a pushed request's life must be under (FAPI 2.0 §5.3.2.2)
)

// checkFAPI refuses what contradicts the profile, and sets what it implies. Defaults are filled in.
func (o *Options) checkFAPI() error {
	switch {
	case o.InsecureEndpointAudiences:
		return wrong("InsecureEndpointAudiences", "FAPI takes assertions for the issuer alone (FAPI 2.0 §5.3.2.1)")
	case o.CodeLifetime > fapiCode:
		return wrong("CodeLifetime", "is over the 60 s of FAPI 2.0 §5.3.2.2")
	case o.PushedLifetime >= fapiPushed:
		return wrong("PushedLifetime", "is not under the 600 s of FAPI 2.0 §5.3.2.2")
	case o.Registration != nil && o.Registration.Open > 0:
		return wrong("Registration", "FAPI has no public clients, and whoever registers without a token becomes one (FAPI 2.0 §5.3.2.1)")
	}
	for _, a := range o.Assertions {
		if a.Client != "" {
			return wrong("Assertions", "FAPI: every client proves who it is, also beside an assertion (FAPI 2.0 §5.3.2.1)")
		}
	}
	o.RequirePushed = o.Consent != nil
	return nil
}
