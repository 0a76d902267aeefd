"""The sentences reports are made of. Small in vocabulary, so that a small text encoder learns them."""

from __future__ import annotations

ORGAN_ORDERS: tuple[tuple[str, ...], ...] = (
    ("airways", "mediastinum", "heart", "lungs", "pleura", "bones"),
    ("heart", "mediastinum", "airways", "lungs", "pleura", "bones"),
    ("lungs", "pleura", "airways", "heart", "mediastinum", "bones"),
    ("pleura", "lungs", "airways", "mediastinum", "heart", "bones"),
)

ORGANS = {
    "Medical material": "mediastinum",
    "Arterial wall calcification": "mediastinum",
    "Cardiomegaly": "heart",
    "Pericardial effusion": "heart",
    "Coronary artery wall calcification": "heart",
    "Hiatal hernia": "mediastinum",
    "Lymphadenopathy": "mediastinum",
    "Emphysema": "lungs",
    "Atelectasis": "lungs",
    "Lung nodule": "lungs",
    "Lung opacity": "lungs",
    "Pulmonary fibrotic sequela": "lungs",
    "Pleural effusion": "pleura",
    "Mosaic attenuation pattern": "lungs",
    "Peribronchial thickening": "airways",
    "Consolidation": "lungs",
    "Bronchiectasis": "airways",
    "Interlobular septal thickening": "lungs",
}
"""Where a label is told."""

WEIGHTS = {
    "Consolidation": 10,
    "Pleural effusion": 9,
    "Lung nodule": 8,
    "Lymphadenopathy": 7,
    "Lung opacity": 7,
    "Cardiomegaly": 6,
    "Pericardial effusion": 6,
    "Emphysema": 5,
    "Bronchiectasis": 5,
    "Interlobular septal thickening": 5,
    "Mosaic attenuation pattern": 5,
    "Atelectasis": 4,
    "Pulmonary fibrotic sequela": 4,
    "Peribronchial thickening": 4,
    "Hiatal hernia": 3,
    "Coronary artery wall calcification": 2,
    "Arterial wall calcification": 2,
    "Medical material": 1,
}
"""Order of the impressions: the weightiest first."""

REASONS = (
    "Cough.",
    "Shortness of breath.",
    "Chest pain.",
    "Fever.",
    "Follow-up.",
    "Control examination.",
    "Weight loss.",
    "Not given.",
)

TECHNIQUES = (
    "Axial images of the chest were obtained {contrast}.",
    "Chest CT {contrast}.",
    "CT of the thorax was performed {contrast}.",
)

NOTHING = (
    "Normal chest CT.",
    "No abnormality of the chest.",
    "Findings within normal limits.",
    "No acute finding in the chest.",
    "Normal examination of the thorax.",
)

ABSENT = ("There is no {label}.", "No {label} is seen.", "No {label}.")

OTHER_SIDE = (
    "No pleural effusion is seen on the {side}.",
    "The {side} pleural space is clear.",
    "There is no effusion on the {side} side.",
)

EFFUSION = (
    "There is a {size} pleural effusion on the {side}.",
    "A {size} {side} pleural effusion is seen.",
    "There is a {size} {side} pleural effusion of about {volume} ml.",
    "In the {side} pleural space there is a {size} effusion.",
    "A {size} pleural effusion is present on the {side} side, about {volume} ml.",
)
EFFUSION_SHORT = (
    "{size} {side} pleural effusion.",
    "Pleural effusion on the {side}, {size}.",
    "{side} pleural effusion.",
)
EFFUSIONS = (
    "There are pleural effusions on both sides, {right} on the right and {left} on the left.",
    "Bilateral pleural effusions are seen, {right} on the right and {left} on the left.",
    "There is a {right} right and a {left} left pleural effusion.",
    "Bilateral pleural effusions of about {right_volume} ml on the right and {left_volume} ml on the left.",
)
EFFUSIONS_SHORT = (
    "Bilateral pleural effusions.",
    "Pleural effusions on both sides.",
    "{right} right and {left} left pleural effusion.",
)
NODULE = (
    "There is a {kind} nodule of {size} mm in the {lobe}.",
    "A {size} mm {kind} nodule is seen in the {lobe}.",
    "In the {lobe} there is a {kind} nodule with a diameter of {size} mm.",
    "A {kind} nodule measuring {size} mm is present in the {lobe}.",
)
NODULE_SHORT = (
    "{kind} nodule in the {lobe}.",
    "Nodule of {size} mm in the {lobe}.",
    "{size} mm nodule in the {lobe}.",
)
NODULES = (
    "{number} {kind} nodules are seen: {places}.",
    "There are {number} {kind} nodules, {places}.",
    "{kind} nodules are present in the lungs, {places}.",
)
NODULES_SHORT = (
    "{number} nodules, the largest {size} mm in the {lobe}.",
    "Multiple lung nodules, the largest in the {lobe}.",
    "{number} {kind} nodules of the lungs.",
)

ABNORMAL: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "Consolidation": (
        (
            "There is a consolidation of about {size} mm in the {lobe} with air bronchograms.",
            "A {size} mm consolidation with air bronchograms is seen in the {lobe}.",
            "The {lobe} contains an area of consolidation measuring {size} mm.",
            "Consolidation is present in the {lobe}, {size} mm in size.",
        ),
        (
            "Consolidation in the {lobe}.",
            "{lobe} consolidation, possibly pneumonia.",
            "Pneumonia of the {lobe}.",
        ),
    ),
    "Consolidation/many": (
        (
            "There are areas of consolidation with air bronchograms, {sizes}.",
            "Consolidations are seen, {sizes}.",
        ),
        ("Consolidation in the {lobe}.", "Pneumonia of the {lobe}."),
    ),
    "Lung opacity": (
        (
            "A ground-glass opacity of {size} mm is seen in the {lobe}.",
            "There is an area of ground-glass density of about {size} mm in the {lobe}.",
            "In the {lobe} there is a ground-glass opacity measuring {size} mm.",
        ),
        ("Ground-glass opacity in the {lobe}.", "Opacity in the {lobe}."),
    ),
    "Lung opacity/many": (
        (
            "Ground-glass opacities are seen, {sizes}.",
            "There are ground-glass opacities in the lungs, {sizes}.",
        ),
        ("Ground-glass opacities in the {lobe}.", "Multiple ground-glass opacities."),
    ),
    "Cardiomegaly": (
        (
            "The heart is enlarged.",
            "Heart size is increased with a cardiothoracic ratio of {ratio}.",
            "Cardiothoracic ratio is increased to {ratio}.",
            "There is enlargement of the heart.",
        ),
        ("Cardiomegaly.", "Enlarged heart."),
    ),
    "Pericardial effusion": (
        (
            "There is a pericardial effusion of {size} mm thickness.",
            "Pericardial effusion measuring {size} mm is seen.",
            "Fluid of {size} mm surrounds the heart.",
        ),
        ("Pericardial effusion.", "Pericardial effusion of {size} mm."),
    ),
    "Emphysema": (
        (
            "Centrilobular emphysema is seen in both lungs, mainly in the upper lobes.",
            "There are emphysematous changes in the upper zones of both lungs.",
            "Emphysema is present in both upper lobes.",
        ),
        ("Emphysema.", "Emphysema of both upper lobes."),
    ),
    "Emphysema/bullous": (
        (
            "There is bullous emphysema in both lungs with bullae up to {size} mm at the apices.",
            "Emphysema with apical bullae of up to {size} mm is seen.",
        ),
        ("Bullous emphysema.", "Emphysema with bullae."),
    ),
    "Atelectasis": (
        (
            "A linear atelectasis is seen in the {lobe}.",
            "There is a linear atelectasis of {size} mm in the {lobe}.",
            "Band-like atelectasis is present in the {lobe}.",
        ),
        ("Linear atelectasis in the {lobe}.", "Atelectasis in the {lobe}."),
    ),
    "Pulmonary fibrotic sequela": (
        (
            "Fibrotic sequelae with pleural thickening are seen at {apex}.",
            "There are sequela fibrotic changes at {apex}.",
            "Fibrotic strands and pleural thickening are present at {apex}.",
        ),
        ("Fibrotic sequelae at {apex}.", "Sequela changes at {apex}."),
    ),
    "Mosaic attenuation pattern": (
        (
            "A mosaic attenuation pattern is seen in both lungs.",
            "Both lungs show mosaic attenuation.",
        ),
        ("Mosaic attenuation pattern.", "Mosaic attenuation, possibly small airway disease."),
    ),
    "Peribronchial thickening": (
        (
            "Peribronchial thickening is seen in both lungs.",
            "The walls of the bronchi are thickened on both sides.",
        ),
        ("Peribronchial thickening.", "Bronchial wall thickening on both sides."),
    ),
    "Bronchiectasis": (
        (
            "Bronchiectasis is seen in the {lobe} with a lumen of up to {size} mm.",
            "There is bronchiectasis in the {lobe}.",
            "The bronchi of the {lobe} are dilated, up to {size} mm.",
        ),
        ("Bronchiectasis in the {lobe}.", "Bronchiectasis of the {lobe}."),
    ),
    "Interlobular septal thickening": (
        (
            "Interlobular septal thickening is seen in both lungs.",
            "There is thickening of the interlobular septa on both sides.",
        ),
        ("Interlobular septal thickening.", "Septal thickening of both lungs."),
    ),
    "Hiatal hernia": (
        (
            "There is a hiatal hernia of {size} mm.",
            "A hiatal hernia measuring {size} mm is seen behind the heart.",
        ),
        ("Hiatal hernia.",),
    ),
    "Lymphadenopathy": (
        (
            "There is an enlarged {grade} lymph node with a short axis of {size} mm.",
            "Enlarged {grade} lymph nodes up to {size} mm in short axis are seen.",
        ),
        ("Mediastinal lymphadenopathy.", "{grade} lymphadenopathy."),
    ),
    "Lymphadenopathy/multiple": (
        (
            "Multiple enlarged mediastinal lymph nodes up to {size} mm in short axis are seen.",
            "There are enlarged lymph nodes in the mediastinum, the largest {size} mm in short axis.",
        ),
        ("Mediastinal lymphadenopathy.", "Multiple enlarged mediastinal lymph nodes."),
    ),
    "Arterial wall calcification": (
        (
            "There are {grade} calcifications in the wall of the aorta.",
            "{grade} calcified plaques are seen in the aortic arch and descending aorta.",
        ),
        ("{grade} aortic calcification.", "Atherosclerosis of the aorta."),
    ),
    "Coronary artery wall calcification": (
        (
            "There are {grade} calcifications of the coronary arteries.",
            "{grade} calcified plaques are seen in the coronary arteries.",
        ),
        ("{grade} coronary calcification.", "Coronary atherosclerosis."),
    ),
    "Medical material/pacemaker": (
        (
            "A pacemaker is seen in the {side} chest wall with leads in the heart.",
            "There is a {side} pacemaker with its leads in the right heart.",
        ),
        ("Pacemaker on the {side}.", "Pacemaker."),
    ),
    "Medical material/port": (
        (
            "A port is seen in the {side} chest wall with its catheter in the superior vena cava.",
            "There is a {side} port catheter ending in the superior vena cava.",
        ),
        ("Port on the {side}.", "Port catheter."),
    ),
    "Medical material/sternal wires": (
        (
            "Sternal wires are seen after sternotomy.",
            "There are metallic wires in the sternum after surgery.",
        ),
        ("Sternal wires after surgery.", "State after sternotomy."),
    ),
    "Medical material/tracheal tube": (
        (
            "A tracheal tube is seen with its tip above the carina.",
            "There is a tube in the trachea.",
        ),
        ("Tracheal tube.",),
    ),
    "Medical material/gastric tube": (
        (
            "A gastric tube runs through the esophagus into the stomach.",
            "There is a gastric tube.",
        ),
        ("Gastric tube.",),
    ),
}
"""Sentences and impressions by label, by ``label/kind``, or ``label/many`` for several."""

NORMAL: tuple[tuple[str, str, tuple[str, ...], float, tuple[str, ...]], ...] = (
    (
        "effusion",
        "pleura",
        ("Pleural effusion",),
        0.95,
        (
            "No pleural effusion is seen.",
            "There is no pleural effusion.",
            "There is no pleural effusion on either side.",
            "The pleural spaces are clear.",
            "No pleural fluid is seen.",
        ),
    ),
    (
        "pericardium",
        "heart",
        ("Pericardial effusion",),
        0.5,
        (
            "No pericardial effusion is seen.",
            "There is no pericardial effusion.",
            "The pericardium is normal.",
        ),
    ),
    (
        "heart",
        "heart",
        ("Cardiomegaly",),
        0.85,
        (
            "Heart size is normal.",
            "The heart is of normal size.",
            "The size of the heart is within normal limits.",
            "Heart contours and size are normal.",
        ),
    ),
    (
        "consolidation",
        "lungs",
        ("Consolidation", "Lung opacity"),
        0.75,
        (
            "No consolidation is seen in the lungs.",
            "There is no consolidation.",
            "No infiltration or consolidation is seen.",
            "Neither lung shows a consolidation.",
        ),
    ),
    (
        "nodule",
        "lungs",
        ("Lung nodule",),
        0.75,
        (
            "No nodule or mass is seen in the lungs.",
            "There is no lung nodule.",
            "No nodule is seen in either lung.",
            "No mass or nodule in both lungs.",
        ),
    ),
    (
        "aeration",
        "lungs",
        (
            "Consolidation",
            "Lung opacity",
            "Emphysema",
            "Atelectasis",
            "Mosaic attenuation pattern",
            "Interlobular septal thickening",
            "Lung nodule",
            "Pulmonary fibrotic sequela",
            "Pleural effusion",
        ),
        0.7,
        (
            "Both lungs are clear.",
            "Aeration of both lungs is normal.",
            "The lungs are well aerated.",
            "Lung parenchyma is normal on both sides.",
        ),
    ),
    (
        "airways",
        "airways",
        ("Bronchiectasis", "Peribronchial thickening"),
        0.7,
        (
            "Trachea and main bronchi are open.",
            "The trachea and both main bronchi are patent.",
            "The airways are open.",
            "Trachea is in the midline and both main bronchi are open.",
        ),
    ),
    (
        "nodes",
        "mediastinum",
        ("Lymphadenopathy",),
        0.6,
        (
            "No enlarged lymph node is seen in the mediastinum.",
            "There is no lymphadenopathy.",
            "No enlarged mediastinal or hilar lymph nodes.",
        ),
    ),
    (
        "vessels",
        "mediastinum",
        ("Arterial wall calcification",),
        0.45,
        (
            "The great vessels are normal.",
            "Calibers of the aorta and pulmonary trunk are normal.",
            "The aorta is of normal width.",
        ),
    ),
    (
        "esophagus",
        "mediastinum",
        ("Hiatal hernia",),
        0.25,
        ("No hiatal hernia is seen.", "The esophagus is normal."),
    ),
    (
        "bones",
        "bones",
        ("Medical material",),
        0.55,
        (
            "No lytic or destructive lesion is seen in the bones.",
            "The bones are intact.",
            "Bone structures are normal.",
            "Vertebral bodies and ribs are normal.",
        ),
    ),
    (
        "abdomen",
        "bones",
        (),
        0.3,
        (
            "The upper abdominal organs are normal.",
            "No abnormality in the upper abdomen.",
            "Liver and spleen are normal as far as seen.",
        ),
    ),
)
"""(topic, organ, labels that forbid it, share of reports that say it, sentences)."""
