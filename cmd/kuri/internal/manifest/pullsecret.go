package manifest

import (
	"fmt"

	corev1 "k8s.io/api/core/v1"

	"github.com/kuri-cri/kuri/cmd/kuri/internal/credential"
)

// PullCredentials returns the credentials of the pod's imagePullSecrets for a repository of a registry, in the
// order in which a kubelet tries them.
func (p *Pod) PullCredentials(registry, repository string) []credential.Credential {
	return p.keyring.Find(registry, repository)
}

// pullSecrets reads the pod's imagePullSecrets. As with a kubelet, a missing one and one of another type are
// only warned about: the image may need none. One with unreadable contents is a problem.
func (p *Pod) pullSecrets() (warnings, problems []string) {
	for i, ref := range p.api.Spec.ImagePullSecrets {
		at := fmt.Sprintf("spec.imagePullSecrets[%d]", i)
		secret, ok := p.configs.find(kindSecret, p.api.Namespace, ref.Name)
		if !ok {
			warnings = append(warnings, at+" is ignored: "+missing(kindSecret, ref.Name))
			continue
		}
		var err error
		switch secret.of {
		case corev1.SecretTypeDockerConfigJson:
			err = addSecret(secret, corev1.DockerConfigJsonKey, p.keyring.AddConfig)
		case corev1.SecretTypeDockercfg:
			err = addSecret(secret, corev1.DockerConfigKey, p.keyring.AddOldConfig)
		default:
			warnings = append(warnings, fmt.Sprintf("%s is ignored: the Secret %q has no type %s or %s",
				at, ref.Name, corev1.SecretTypeDockerConfigJson, corev1.SecretTypeDockercfg))
		}
		if err != nil {
			problems = append(problems, fmt.Sprintf("%s: the Secret %q: %v", at, ref.Name, err))
		}
	}
	return warnings, problems
}

// addSecret passes the value of a Secret with credentials to add.
func addSecret(secret config, key string, add func([]byte) error) error {
	data, ok := secret.values[key]
	if !ok {
		return fmt.Errorf("it has no key %q%s", key, hasKeys(secret.values))
	}
	if err := add(data); err != nil {
		return fmt.Errorf("%s: %w", key, err)
	}
	return nil
}
